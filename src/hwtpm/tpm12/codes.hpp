// Numbers of TPM 1.2 that the root of trust needs beyond tpm/codes.hpp. TPM Main part 2.
#pragma once

#include <cstdint>

namespace vtpmd::hwtpm::v12 {

// Return codes, section 16.
inline constexpr std::uint32_t rc_bad_parameter = 0x03;
inline constexpr std::uint32_t rc_deactivated = 0x06;
inline constexpr std::uint32_t rc_disabled = 0x07;
inline constexpr std::uint32_t rc_disabled_cmd = 0x08;
inline constexpr std::uint32_t rc_no_space = 0x11;
inline constexpr std::uint32_t rc_wrong_pcr_value = 0x18;
inline constexpr std::uint32_t rc_bad_param_size = 0x19;
inline constexpr std::uint32_t rc_resources = 0x15;
inline constexpr std::uint32_t rc_decrypt_error = 0x21;
inline constexpr std::uint32_t rc_invalid_auth_handle = 0x22;
inline constexpr std::uint32_t rc_no_endorsement = 0x23;
inline constexpr std::uint32_t rc_invalid_key_usage = 0x24;
inline constexpr std::uint32_t rc_bad_key_property = 0x28;
inline constexpr std::uint32_t rc_invalid_postinit = 0x26;
inline constexpr std::uint32_t rc_not_sealed_blob = 0x13;
inline constexpr std::uint32_t rc_bad_locality = 0x3D;
inline constexpr std::uint32_t rc_bad_counter = 0x45;
inline constexpr std::uint32_t rc_needs_selftest = 0x801;

// Ordinals, section 17.
inline constexpr std::uint32_t ord_release_counter = 0xDF;
inline constexpr std::uint32_t ord_release_counter_owner = 0xE0;
inline constexpr std::uint32_t ord_owner_read_internal_pub = 0x81;

// Fixed handles and entity types, sections 4.3 and 4.4.
inline constexpr std::uint32_t kh_srk = 0x40000000;
inline constexpr std::uint32_t kh_owner = 0x40000001;
inline constexpr std::uint32_t kh_ek = 0x40000006;
inline constexpr std::uint16_t et_owner = 0x0002;
inline constexpr std::uint16_t et_srk = 0x0004;
inline constexpr std::uint16_t pid_owner = 0x0005;

// Capabilities, section 21.
inline constexpr std::uint32_t cap_property = 0x05;
inline constexpr std::uint32_t cap_handle = 0x14;
inline constexpr std::uint32_t cap_version_val = 0x1A;
inline constexpr std::uint32_t prop_owner = 0x111;
inline constexpr std::uint32_t rt_key = 0x01;     ///< TPM_RT_KEY
inline constexpr std::uint32_t rt_auth = 0x02;    ///< TPM_RT_AUTH, section 4.1
inline constexpr std::uint32_t rt_counter = 0x06; ///< TPM_RT_COUNTER

// TPM_KEY and TPM_KEY_PARMS, sections 5.8, 10.1, 10.2.
inline constexpr std::uint32_t alg_rsa = 0x01;
inline constexpr std::uint16_t es_rsaes_oaep = 0x03;
inline constexpr std::uint16_t es_none = 0x01;
inline constexpr std::uint16_t ss_none = 0x01;
inline constexpr std::uint16_t ss_rsassa_sha1 = 0x02;
inline constexpr std::uint16_t key_storage = 0x11;
inline constexpr std::uint16_t key_identity = 0x12;
inline constexpr std::uint16_t tag_pcr_info_long = 0x06;

} // namespace vtpmd::hwtpm::v12
