#include "tpm/effect.hpp"

#include "tpm/header.hpp"

#include <algorithm>
#include <array>

namespace vtpmd::tpm {

namespace {

/// TPM Main part 2 section 17, ascending.
constexpr auto harmless_12 = std::to_array<std::uint32_t>({
    0x0A,       // OIAP
    0x0B,       // OSAP
    0x0C,       // ChangeAuth: gives out a new blob
    0x0E,       // ChangeAuthAsymStart
    0x0F,       // ChangeAuthAsymFinish
    0x11,       // DSAP
    0x12,       // CMK_CreateTicket
    0x13,       // CMK_CreateKey
    0x14,       // Extend
    0x15,       // PcrRead
    0x16,       // Quote
    0x17,       // Seal
    0x18,       // Unseal
    0x1A,       // DirRead
    0x1B,       // CMK_CreateBlob
    0x1D,       // CMK_ApproveMA
    0x1E,       // UnBind
    0x1F,       // CreateWrapKey
    0x20,       // LoadKey
    0x21,       // GetPubKey
    0x22,       // EvictKey
    0x24,       // CMK_ConvertMigration
    0x25,       // MigrateKey
    0x28,       // CreateMigrationBlob
    0x29,       // DAA_Join
    0x2A,       // ConvertMigrationBlob
    0x2B,       // AuthorizeMigrationKey
    0x30,       // ReadManuMaintPub
    0x31,       // DAA_Sign
    0x32,       // CertifyKey
    0x33,       // CertifyKey2
    0x3C,       // Sign
    0x3D,       // Sealx
    0x3E,       // Quote2
    0x41,       // LoadKey2
    0x46,       // GetRandom
    0x47,       // StirRandom
    0x50,       // SelfTestFull
    0x52,       // CertifySelfTest
    0x53,       // ContinueSelfTest
    0x54,       // GetTestResult
    0x5A,       // Reset
    0x64,       // GetCapabilitySigned
    0x65,       // GetCapability
    0x66,       // GetCapabilityOwner
    0x79,       // MakeIdentity
    0x7A,       // ActivateIdentity
    0x7C,       // ReadPubek
    0x7D,       // OwnerReadPubek
    0x82,       // GetAuditEvent
    0x83,       // GetAuditEventSigned
    0x85,       // GetAuditDigest
    0x8C,       // GetOrdinalAuditStatus
    0x96,       // Terminate_Handle
    0xA0,       // SHA1Start
    0xA1,       // SHA1Update
    0xA2,       // SHA1Complete
    0xA3,       // SHA1CompleteExtend
    0xB4,       // SaveKeyContext
    0xB5,       // LoadKeyContext
    0xB6,       // SaveAuthContext
    0xB7,       // LoadAuthContext
    0xB8,       // SaveContext
    0xB9,       // LoadContext
    0xBA,       // FlushSpecific
    0xC8,       // PCR_Reset
    0xCF,       // NV_ReadValue
    0xD0,       // NV_ReadValueAuth
    0xD4,       // Delegate_CreateKeyDelegation
    0xD6,       // Delegate_VerifyDelegation
    0xDB,       // Delegate_ReadTable
    0xDE,       // ReadCounter
    0xE6,       // EstablishTransport
    0xE8,       // ReleaseTransportSigned
    0xF1,       // GetTicks
    0xF2,       // TickStampBlob
    0x20000016, // DeepQuote
    0x2000007C, // ParentSignEK
});

/// Library part 2 section 6.5.2, ascending.
constexpr auto harmless_20 = std::to_array<std::uint32_t>({
    0x131,      // CreatePrimary
    0x133,      // GetCommandAuditDigest
    0x13C,      // PCR_Event
    0x13D,      // PCR_Reset
    0x13E,      // SequenceComplete
    0x142,      // IncrementalSelfTest
    0x143,      // SelfTest
    0x146,      // StirRandom
    0x147,      // ActivateCredential
    0x148,      // Certify
    0x149,      // PolicyNV
    0x14A,      // CertifyCreation
    0x14B,      // Duplicate
    0x14C,      // GetTime
    0x14D,      // GetSessionAuditDigest
    0x14E,      // NV_Read
    0x150,      // ObjectChangeAuth: gives out a new blob
    0x151,      // PolicySecret
    0x152,      // Rewrap
    0x153,      // Create
    0x154,      // ECDH_ZGen
    0x155,      // HMAC, MAC
    0x156,      // Import
    0x157,      // Load
    0x158,      // Quote
    0x159,      // RSA_Decrypt
    0x15B,      // HMAC_Start, MAC_Start
    0x15C,      // SequenceUpdate
    0x15D,      // Sign
    0x15E,      // Unseal
    0x160,      // PolicySigned
    0x161,      // ContextLoad
    0x162,      // ContextSave
    0x163,      // ECDH_KeyGen
    0x164,      // EncryptDecrypt
    0x165,      // FlushContext
    0x167,      // LoadExternal
    0x168,      // MakeCredential
    0x169,      // NV_ReadPublic
    0x16A,      // PolicyAuthorize
    0x16B,      // PolicyAuthValue
    0x16C,      // PolicyCommandCode
    0x16D,      // PolicyCounterTimer
    0x16E,      // PolicyCpHash
    0x16F,      // PolicyLocality
    0x170,      // PolicyNameHash
    0x171,      // PolicyOR
    0x172,      // PolicyTicket
    0x173,      // ReadPublic
    0x174,      // RSA_Encrypt
    0x176,      // StartAuthSession
    0x177,      // VerifySignature
    0x178,      // ECC_Parameters
    0x179,      // FirmwareRead
    0x17A,      // GetCapability
    0x17B,      // GetRandom
    0x17C,      // GetTestResult
    0x17D,      // Hash
    0x17E,      // PCR_Read
    0x17F,      // PolicyPCR
    0x180,      // PolicyRestart
    0x181,      // ReadClock
    0x182,      // PCR_Extend
    0x184,      // NV_Certify
    0x185,      // EventSequenceComplete
    0x186,      // HashSequenceStart
    0x187,      // PolicyPhysicalPresence
    0x188,      // PolicyDuplicationSelect
    0x189,      // PolicyGetDigest
    0x18A,      // TestParms
    0x18B,      // Commit
    0x18C,      // PolicyPassword
    0x18D,      // ZGen_2Phase
    0x18E,      // EC_Ephemeral
    0x18F,      // PolicyNvWritten
    0x190,      // PolicyTemplate
    0x191,      // CreateLoaded
    0x192,      // PolicyAuthorizeNV
    0x193,      // EncryptDecrypt2
    0x194,      // AC_GetCapability
    0x196,      // Policy_AC_SendSelect
    0x197,      // CertifyX509
    0x199,      // ECC_Encrypt
    0x19A,      // ECC_Decrypt
    0x20000016, // the vendor's DeepQuote
});

static_assert(std::ranges::is_sorted(harmless_12) && std::ranges::is_sorted(harmless_20));

} // namespace

Effect effect(TpmVersion version, std::uint32_t code) noexcept {
    const bool harmless = version == TpmVersion::tpm12 ? std::ranges::binary_search(harmless_12, code)
                                                       : std::ranges::binary_search(harmless_20, code);
    return harmless ? Effect::none : Effect::permanent;
}

bool is_authorised(TpmVersion version, ByteView command) noexcept {
    const std::uint16_t tag = peek_header(command).tag;
    return version == TpmVersion::tpm12 ? tag == tag_rqu_auth1 || tag == tag_rqu_auth2 : tag == st_sessions;
}

} // namespace vtpmd::tpm
