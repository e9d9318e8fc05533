// The certificates of a new TPM's endorsement keys: made by the group's CA at the manager, and put where guests look for them.
//
// TPM 2.0 (TCG EK Credential Profile for TPM Family 2.0, section 2.2.1.4, "low range"): NV indices of the platform, raw DER
//   0x01C00002  RSA-2048, template L-1
//   0x01C0000A  ECC NIST P-256, template L-2
// TPM 1.2 (TCG PC Client Implementation Specification for Conventional BIOS, section 7.4): NV index 0x1000F000 (TPM_NV_INDEX_EKCert with
// the D bit), a TCG_PCCLIENT_STORED_CERT: u16 0x1001, u8 0 (a full certificate), u16 size of the rest, u16 0x1002, DER
#pragma once

#include "engine/engine.hpp"
#include "proto/link/client.hpp"
#include "util/worker.hpp"

namespace vtpmd::instance {

inline constexpr std::uint32_t nv_ek_certificate_rsa = 0x01C00002;
inline constexpr std::uint32_t nv_ek_certificate_ecc = 0x01C0000A;
inline constexpr std::uint32_t nv_ek_certificate_12 = 0x1000F000;

/// Makes the keys of a running, new TPM 2.0 on the worker, has them certified, and writes the certificates. Errc::tpm: the TPM refuses a
/// step; else what ManagerClient::certify() says: unsupported leaves a TPM without certificates that is otherwise whole.
Task<Result<void>> certify_keys_20(Engine& engine, Worker& worker, proto::ManagerClient& manager);
/// The same for a TPM 1.2, whose key was made: `answer` is that of TPM_CreateEndorsementKeyPair.
Task<Result<void>> certify_key_12(Engine& engine, Bytes answer, proto::ManagerClient& manager);

} // namespace vtpmd::instance
