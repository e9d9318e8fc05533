#include "hex.hpp"
#include "tpm/command_names.hpp"
#include "tpm/effect.hpp"

#include <doctest/doctest.h>
#include <map>
#include <string>

namespace tpm_effect_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using test::hex;

namespace {

using Changes = std::map<std::uint32_t, std::string_view>;

/// All that changes what outlives a power cycle, or must be taken as if it did; by part 3 of the specifications.
const Changes changes_12{
    {0xD, "TPM_TakeOwnership"},
    {0x10, "TPM_ChangeAuthOwner"},
    {0x19, "TPM_DirWriteAuth"},
    {0x1C, "TPM_CMK_SetRestrictions"},
    {0x23, "TPM_KeyControlOwner"},
    {0x2C, "TPM_CreateMaintenanceArchive"},
    {0x2D, "TPM_LoadMaintenanceArchive"},
    {0x2E, "TPM_KillMaintenanceFeature"},
    {0x2F, "TPM_LoadManuMaintPub"},
    {0x3F, "TPM_SetCapability"},
    {0x40, "TPM_ResetLockValue"},
    {0x55, "TPM_Reset"},
    {0x5B, "TPM_OwnerClear"},
    {0x5C, "TPM_DisableOwnerClear"},
    {0x5D, "TPM_ForceClear"},
    {0x5E, "TPM_DisableForceClear"},
    {0x6E, "TPM_OwnerSetDisable"},
    {0x6F, "TPM_PhysicalEnable"},
    {0x70, "TPM_PhysicalDisable"},
    {0x71, "TPM_SetOwnerInstall"},
    {0x72, "TPM_PhysicalSetDeactivated"},
    {0x73, "TPM_SetTempDeactivated"},
    {0x74, "TPM_SetOperatorAuth"},
    {0x75, "TPM_SetOwnerPointer"},
    {0x78, "TPM_CreateEndorsementKeyPair"},
    {0x7E, "TPM_DisablePubekRead"},
    {0x7F, "TPM_CreateRevocableEK"},
    {0x80, "TPM_RevokeTrust"},
    {0x86, "TPM_GetAuditDigestSigned"},
    {0x8D, "TPM_SetOrdinalAuditStatus"},
    {0x97, "TPM_Init"},
    {0x98, "TPM_SaveState"},
    {0x99, "TPM_Startup"},
    {0x9A, "TPM_SetRedirection"},
    {0xAA, "TPM_FieldUpgrade"},
    {0xCC, "TPM_NV_DefineSpace"},
    {0xCD, "TPM_NV_WriteValue"},
    {0xCE, "TPM_NV_WriteValueAuth"},
    {0xD1, "TPM_Delegate_UpdateVerification"},
    {0xD2, "TPM_Delegate_Manage"},
    {0xD5, "TPM_Delegate_CreateOwnerDelegation"},
    {0xD8, "TPM_Delegate_LoadOwnerDelegation"},
    {0xDC, "TPM_CreateCounter"},
    {0xDD, "TPM_IncrementCounter"},
    {0xDF, "TPM_ReleaseCounter"},
    {0xE0, "TPM_ReleaseCounterOwner"},
    {0xE7, "TPM_ExecuteTransport"},
    {0x4000000A, "TSC_PhysicalPresence"},
    {0x4000000C, "TSC_ResetEstablishmentBit"},
};

const Changes changes_20{
    {0x11F, "TPM2_NV_UndefineSpaceSpecial"},
    {0x120, "TPM2_EvictControl"},
    {0x121, "TPM2_HierarchyControl"},
    {0x122, "TPM2_NV_UndefineSpace"},
    {0x124, "TPM2_ChangeEPS"},
    {0x125, "TPM2_ChangePPS"},
    {0x126, "TPM2_Clear"},
    {0x127, "TPM2_ClearControl"},
    {0x128, "TPM2_ClockSet"},
    {0x129, "TPM2_HierarchyChangeAuth"},
    {0x12A, "TPM2_NV_DefineSpace"},
    {0x12B, "TPM2_PCR_Allocate"},
    {0x12C, "TPM2_PCR_SetAuthPolicy"},
    {0x12D, "TPM2_PP_Commands"},
    {0x12E, "TPM2_SetPrimaryPolicy"},
    {0x12F, "TPM2_FieldUpgradeStart"},
    {0x130, "TPM2_ClockRateAdjust"},
    {0x132, "TPM2_NV_GlobalWriteLock"},
    {0x134, "TPM2_NV_Increment"},
    {0x135, "TPM2_NV_SetBits"},
    {0x136, "TPM2_NV_Extend"},
    {0x137, "TPM2_NV_Write"},
    {0x138, "TPM2_NV_WriteLock"},
    {0x139, "TPM2_DictionaryAttackLockReset"},
    {0x13A, "TPM2_DictionaryAttackParameters"},
    {0x13B, "TPM2_NV_ChangeAuth"},
    {0x13F, "TPM2_SetAlgorithmSet"},
    {0x140, "TPM2_SetCommandCodeAuditStatus"},
    {0x141, "TPM2_FieldUpgradeData"},
    {0x144, "TPM2_Startup"},
    {0x145, "TPM2_Shutdown"},
    {0x14F, "TPM2_NV_ReadLock"},
    {0x183, "TPM2_PCR_SetAuthValue"},
    {0x195, "TPM2_AC_Send"},
    {0x198, "TPM2_ACT_SetTimeout"},
};

} // namespace

TEST_SUITE("tpm") {
    TEST_CASE("what a command can change: every code of both families") {
        for (auto version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            const Changes& changes = version == TpmVersion::tpm12 ? changes_12 : changes_20;
            std::size_t named = 0, changing = 0;
            auto check = [&](std::uint32_t code) {
                CAPTURE(code);
                const std::string_view name = command_name(version, code);
                const auto it = changes.find(code);
                if (it != changes.end()) {
                    CHECK(name == it->second);
                    ++changing;
                }
                // What has no name is refused by the TPM; nobody knows by which one tomorrow.
                const bool expected = name.empty() || it != changes.end();
                CHECK((effect(version, code) == Effect::permanent) == expected);
                named += name.empty() ? 0 : 1;
            };
            for (std::uint32_t code = 0; code < 0x300; ++code) {
                check(code);
            }
            for (std::uint32_t vendor : {0x20000000U, 0x40000000U}) {
                for (std::uint32_t code = vendor; code < vendor + 0x100; ++code) {
                    check(code);
                }
            }
            CHECK(changing == changes.size());
            CHECK(named == (version == TpmVersion::tpm12 ? 127 : 120));
        }
    }

    TEST_CASE("a command that carries an authorisation, by its tag") {
        CHECK(is_authorised(TpmVersion::tpm20, hex("8002 0000000a 0000014e")));
        CHECK_FALSE(is_authorised(TpmVersion::tpm20, hex("8001 0000000a 0000017b")));
        CHECK(is_authorised(TpmVersion::tpm12, hex("00c2 0000000a 00000016")));
        CHECK(is_authorised(TpmVersion::tpm12, hex("00c3 0000000a 00000018")));
        CHECK_FALSE(is_authorised(TpmVersion::tpm12, hex("00c1 0000000a 00000046")));
        CHECK_FALSE(is_authorised(TpmVersion::tpm12, hex("8002")));
        CHECK_FALSE(is_authorised(TpmVersion::tpm20, {}));
    }

    TEST_CASE("nothing can be made durable: the code of either family") {
        CHECK(not_durable_code(TpmVersion::tpm12) == 0x800); // TPM_RETRY
        CHECK(not_durable_code(TpmVersion::tpm20) == 0x923); // TPM_RC_NV_UNAVAILABLE
    }
}

} // namespace tpm_effect_test
