#include "tpm/cost.hpp"

#include "tpm/header.hpp"
#include "util/wire.hpp"

namespace vtpmd::tpm {

namespace {

/// TPM 1.2 decrypts with a parent's private key also to load, unseal or change a key.
Cost cost_12(std::uint32_t ordinal) noexcept {
    switch (ordinal) {
    case ord::change_auth:
    case ord::take_ownership:
    case ord::change_auth_asym_start:
    case ord::change_auth_asym_finish:
    case ord::cmk_create_ticket:
    case ord::cmk_create_key:
    case ord::quote:
    case ord::unseal:
    case ord::cmk_create_blob:
    case ord::unbind:
    case ord::create_wrap_key:
    case ord::load_key:
    case ord::cmk_convert_migration:
    case ord::migrate_key:
    case ord::create_migration_blob:
    case ord::daa_join:
    case ord::convert_migration_blob:
    case ord::create_maintenance_archive:
    case ord::load_maintenance_archive:
    case ord::daa_sign:
    case ord::certify_key:
    case ord::certify_key2:
    case ord::sign:
    case ord::quote2:
    case ord::load_key2:
    case ord::self_test_full:
    case ord::certify_self_test:
    case ord::continue_self_test:
    case ord::get_capability_signed:
    case ord::create_endorsement_key_pair:
    case ord::make_identity:
    case ord::activate_identity:
    case ord::create_revocable_ek:
    case ord::get_audit_digest_signed:
    case ord::establish_transport:
    case ord::execute_transport:
    case ord::release_transport_signed:
    case ord::tick_stamp_blob:
    case ord::vendor_deep_quote:
    case ord::vendor_parent_sign_ek:
        return Cost::long_;
    default:
        return Cost::fast;
    }
}

/// Elliptic-curve verification counts as long: without assembler for the curve it takes as long as a signature.
Cost cost_20(std::uint32_t code) noexcept {
    switch (code) {
    case cc::change_eps:
    case cc::change_pps:
    case cc::create_primary:
    case cc::get_command_audit_digest:
    case cc::incremental_self_test:
    case cc::self_test:
    case cc::activate_credential:
    case cc::certify:
    case cc::certify_creation:
    case cc::duplicate:
    case cc::get_time:
    case cc::get_session_audit_digest:
    case cc::rewrap:
    case cc::create:
    case cc::ecdh_zgen:
    case cc::import:
    case cc::load:
    case cc::quote:
    case cc::rsa_decrypt:
    case cc::sign:
    case cc::policy_signed:
    case cc::ecdh_key_gen:
    case cc::load_external:
    case cc::make_credential:
    case cc::verify_signature:
    case cc::nv_certify:
    case cc::commit:
    case cc::zgen_2phase:
    case cc::ec_ephemeral:
    case cc::create_loaded:
    case cc::certify_x509:
    case cc::vendor_deep_quote:
        return Cost::long_;
    default:
        return Cost::fast;
    }
}

} // namespace

Cost cost(TpmVersion version, std::uint32_t code) noexcept {
    return version == TpmVersion::tpm12 ? cost_12(code) : cost_20(code);
}

Cost cost(TpmVersion version, ByteView command) noexcept {
    const Header h = peek_header(command);
    if (version == TpmVersion::tpm20 && h.code == cc::start_auth_session) {
        // Library part 3 section 11.1: the first handle is tpmKey, by which the salt is encrypted.
        WireReader r(command);
        r.skip(header_size);
        const std::uint32_t key = r.be32();
        return r.ok() && key != rh::null ? Cost::long_ : Cost::fast;
    }
    return cost(version, h.code);
}

bool is_maintenance_ordinal(std::uint32_t ordinal) noexcept {
    return ordinal >= ord::create_maintenance_archive && ordinal <= ord::read_manu_maint_pub;
}

} // namespace vtpmd::tpm
