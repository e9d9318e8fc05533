// Numbers of the two TPM specifications, as far as this program names them.
//   "Main 2": TPM Main, part 2, structures, version 1.2 level 2 revision 116.
//   "Library 2": TPM 2.0 Library, part 2, structures, revision 1.59.
#pragma once

#include <cstdint>

namespace vtpmd::tpm {

// Tags. Main 2 section 6.1 (TPM_TAG_*), Library 2 section 6.9 (TPM_ST_*).
inline constexpr std::uint16_t tag_rqu_command = 0x00C1;
inline constexpr std::uint16_t tag_rqu_auth1 = 0x00C2;
inline constexpr std::uint16_t tag_rqu_auth2 = 0x00C3;
inline constexpr std::uint16_t tag_rsp_command = 0x00C4;
inline constexpr std::uint16_t tag_rsp_auth1 = 0x00C5;
inline constexpr std::uint16_t tag_rsp_auth2 = 0x00C6;
inline constexpr std::uint16_t st_no_sessions = 0x8001;
inline constexpr std::uint16_t st_sessions = 0x8002;

// TPM 1.2 ordinals (TPM_ORD_*). Main 2 section 17.
namespace ord {
inline constexpr std::uint32_t oiap = 0x0A;
inline constexpr std::uint32_t osap = 0x0B;
inline constexpr std::uint32_t change_auth = 0x0C;
inline constexpr std::uint32_t take_ownership = 0x0D;
inline constexpr std::uint32_t change_auth_asym_start = 0x0E;
inline constexpr std::uint32_t change_auth_asym_finish = 0x0F;
inline constexpr std::uint32_t change_auth_owner = 0x10;
inline constexpr std::uint32_t dsap = 0x11;
inline constexpr std::uint32_t cmk_create_ticket = 0x12;
inline constexpr std::uint32_t cmk_create_key = 0x13;
inline constexpr std::uint32_t extend = 0x14;
inline constexpr std::uint32_t pcr_read = 0x15;
inline constexpr std::uint32_t quote = 0x16;
inline constexpr std::uint32_t seal = 0x17;
inline constexpr std::uint32_t unseal = 0x18;
inline constexpr std::uint32_t cmk_create_blob = 0x1B;
inline constexpr std::uint32_t unbind = 0x1E;
inline constexpr std::uint32_t create_wrap_key = 0x1F;
inline constexpr std::uint32_t load_key = 0x20;
inline constexpr std::uint32_t cmk_convert_migration = 0x24;
inline constexpr std::uint32_t migrate_key = 0x25;
inline constexpr std::uint32_t create_migration_blob = 0x28;
inline constexpr std::uint32_t daa_join = 0x29;
inline constexpr std::uint32_t convert_migration_blob = 0x2A;
inline constexpr std::uint32_t create_maintenance_archive = 0x2C;
inline constexpr std::uint32_t load_maintenance_archive = 0x2D;
inline constexpr std::uint32_t kill_maintenance_feature = 0x2E;
inline constexpr std::uint32_t load_manu_maint_pub = 0x2F;
inline constexpr std::uint32_t read_manu_maint_pub = 0x30;
inline constexpr std::uint32_t daa_sign = 0x31;
inline constexpr std::uint32_t certify_key = 0x32;
inline constexpr std::uint32_t certify_key2 = 0x33;
inline constexpr std::uint32_t sign = 0x3C;
inline constexpr std::uint32_t sealx = 0x3D;
inline constexpr std::uint32_t quote2 = 0x3E;
inline constexpr std::uint32_t load_key2 = 0x41;
inline constexpr std::uint32_t get_random = 0x46;
inline constexpr std::uint32_t stir_random = 0x47;
inline constexpr std::uint32_t self_test_full = 0x50;
inline constexpr std::uint32_t certify_self_test = 0x52;
inline constexpr std::uint32_t continue_self_test = 0x53;
inline constexpr std::uint32_t get_test_result = 0x54;
inline constexpr std::uint32_t owner_clear = 0x5B;
inline constexpr std::uint32_t force_clear = 0x5D;
inline constexpr std::uint32_t get_capability = 0x65;
inline constexpr std::uint32_t physical_enable = 0x6F;
inline constexpr std::uint32_t physical_set_deactivated = 0x72;
inline constexpr std::uint32_t create_endorsement_key_pair = 0x78;
inline constexpr std::uint32_t make_identity = 0x79;
inline constexpr std::uint32_t activate_identity = 0x7A;
inline constexpr std::uint32_t read_pubek = 0x7C;
inline constexpr std::uint32_t create_revocable_ek = 0x7F;
inline constexpr std::uint32_t get_audit_digest_signed = 0x86;
inline constexpr std::uint32_t get_capability_signed = 0x64;
inline constexpr std::uint32_t save_state = 0x98;
inline constexpr std::uint32_t startup = 0x99;
inline constexpr std::uint32_t flush_specific = 0xBA;
inline constexpr std::uint32_t nv_define_space = 0xCC;
inline constexpr std::uint32_t nv_write_value = 0xCD;
inline constexpr std::uint32_t nv_read_value = 0xCF;
inline constexpr std::uint32_t create_counter = 0xDC;
inline constexpr std::uint32_t increment_counter = 0xDD;
inline constexpr std::uint32_t read_counter = 0xDE;
inline constexpr std::uint32_t establish_transport = 0xE6;
inline constexpr std::uint32_t execute_transport = 0xE7;
inline constexpr std::uint32_t release_transport_signed = 0xE8;
inline constexpr std::uint32_t tick_stamp_blob = 0xF2;
/// TSC_ordinals (connection commands): TPM PC Client implementation specification section 3.
inline constexpr std::uint32_t tsc_physical_presence = 0x4000000A;
/// TPM_VENDOR_COMMAND, and the two that Xen's vTPM has (a hardware quote over the vTPM's PCRs, and over its EK).
inline constexpr std::uint32_t vendor_command = 0x20000000;
inline constexpr std::uint32_t vendor_deep_quote = vendor_command | 0x16;
inline constexpr std::uint32_t vendor_parent_sign_ek = vendor_command | 0x7C;
} // namespace ord

/// Flags of vendor_deep_quote and of the manager's GET_QUOTE: what is signed beside the data, as Xen's vTPM and manager
/// have it.
namespace old_quote {
inline constexpr std::uint32_t vtpm_uuid = 1;
inline constexpr std::uint32_t vtpm_label = 2; ///< the hash of its peer's label (GET_BOOT_HASH)
inline constexpr std::uint32_t group_list = 4; ///< the group's approver and its list
inline constexpr std::uint32_t group_key = 8;  ///< the group's approver
inline constexpr std::uint32_t all_flags = 15;
inline constexpr std::size_t selection_limit = 3;  ///< bytes of TPM_PCR_SELECTION: 24 PCRs
inline constexpr std::size_t signature_size = 256; ///< RSA-2048
} // namespace old_quote

// TPM 2.0 command codes (TPM_CC_*). Library 2 section 6.5.2.
namespace cc {
inline constexpr std::uint32_t nv_undefine_space = 0x122;
inline constexpr std::uint32_t change_eps = 0x124;
inline constexpr std::uint32_t change_pps = 0x125;
inline constexpr std::uint32_t clear = 0x126;
inline constexpr std::uint32_t nv_define_space = 0x12A;
inline constexpr std::uint32_t pcr_allocate = 0x12B;
inline constexpr std::uint32_t create_primary = 0x131;
inline constexpr std::uint32_t get_command_audit_digest = 0x133;
inline constexpr std::uint32_t nv_increment = 0x134;
inline constexpr std::uint32_t nv_write = 0x137;
inline constexpr std::uint32_t incremental_self_test = 0x142;
inline constexpr std::uint32_t self_test = 0x143;
inline constexpr std::uint32_t startup = 0x144;
inline constexpr std::uint32_t shutdown = 0x145;
inline constexpr std::uint32_t activate_credential = 0x147;
inline constexpr std::uint32_t certify = 0x148;
inline constexpr std::uint32_t certify_creation = 0x14A;
inline constexpr std::uint32_t duplicate = 0x14B;
inline constexpr std::uint32_t get_time = 0x14C;
inline constexpr std::uint32_t get_session_audit_digest = 0x14D;
inline constexpr std::uint32_t nv_read = 0x14E;
inline constexpr std::uint32_t rewrap = 0x152;
inline constexpr std::uint32_t create = 0x153;
inline constexpr std::uint32_t ecdh_zgen = 0x154;
inline constexpr std::uint32_t import = 0x156;
inline constexpr std::uint32_t load = 0x157;
inline constexpr std::uint32_t quote = 0x158;
inline constexpr std::uint32_t rsa_decrypt = 0x159;
inline constexpr std::uint32_t sign = 0x15D;
inline constexpr std::uint32_t policy_signed = 0x160;
inline constexpr std::uint32_t ecdh_key_gen = 0x163;
inline constexpr std::uint32_t load_external = 0x167;
inline constexpr std::uint32_t make_credential = 0x168;
inline constexpr std::uint32_t rsa_encrypt = 0x174;
inline constexpr std::uint32_t start_auth_session = 0x176;
inline constexpr std::uint32_t verify_signature = 0x177;
inline constexpr std::uint32_t get_capability = 0x17A;
inline constexpr std::uint32_t get_random = 0x17B;
inline constexpr std::uint32_t pcr_read = 0x17E;
inline constexpr std::uint32_t pcr_extend = 0x182;
inline constexpr std::uint32_t nv_certify = 0x184;
inline constexpr std::uint32_t commit = 0x18B;
inline constexpr std::uint32_t zgen_2phase = 0x18D;
inline constexpr std::uint32_t ec_ephemeral = 0x18E;
inline constexpr std::uint32_t create_loaded = 0x191;
inline constexpr std::uint32_t certify_x509 = 0x197;
/// A vendor's: section 6.5.1, V. A deep quote, by the number that it has in a TPM 1.2.
inline constexpr std::uint32_t vendor_deep_quote = 0x20000016;
} // namespace cc

// TPM 1.2 return codes (TPM_*). Main 2 section 16.
namespace rc12 {
inline constexpr std::uint32_t success = 0;
inline constexpr std::uint32_t bad_parameter = 3;
inline constexpr std::uint32_t disabled_cmd = 8;
inline constexpr std::uint32_t fail = 9;
inline constexpr std::uint32_t bad_ordinal = 10;
inline constexpr std::uint32_t bad_param_size = 25;
inline constexpr std::uint32_t bad_tag = 30;
inline constexpr std::uint32_t io_error = 31;
inline constexpr std::uint32_t invalid_postinit = 38;
inline constexpr std::uint32_t bad_locality = 61;
inline constexpr std::uint32_t retry = 0x800;
} // namespace rc12

// TPM 2.0 response codes (TPM_RC_*). Library 2 section 6.6.3.
namespace rc20 {
inline constexpr std::uint32_t success = 0;
inline constexpr std::uint32_t bad_tag = 0x01E;
inline constexpr std::uint32_t value = 0x084;
inline constexpr std::uint32_t size = 0x095;
inline constexpr std::uint32_t initialize = 0x100;
inline constexpr std::uint32_t failure = 0x101;
inline constexpr std::uint32_t disabled = 0x120;
inline constexpr std::uint32_t auth_unavailable = 0x12F;
inline constexpr std::uint32_t command_size = 0x142;
inline constexpr std::uint32_t command_code = 0x143;
inline constexpr std::uint32_t auth_context = 0x145;
inline constexpr std::uint32_t locality = 0x907;
inline constexpr std::uint32_t canceled = 0x909;
inline constexpr std::uint32_t testing = 0x90A;
inline constexpr std::uint32_t retry = 0x922;
} // namespace rc20

// Algorithms (TPM_ALG_*). Library 2 section 6.3.
namespace alg {
inline constexpr std::uint16_t sha1 = 0x0004;
inline constexpr std::uint16_t sha256 = 0x000B;
inline constexpr std::uint16_t sha384 = 0x000C;
inline constexpr std::uint16_t sha512 = 0x000D;
} // namespace alg

// Permanent handles (TPM_RH_*). Library 2 section 7.4.
namespace rh {
inline constexpr std::uint32_t owner = 0x40000001;
inline constexpr std::uint32_t null = 0x40000007;
inline constexpr std::uint32_t platform = 0x4000000C;
inline constexpr std::uint32_t pw = 0x40000009; ///< TPM_RS_PW, the password session
} // namespace rh

} // namespace vtpmd::tpm
