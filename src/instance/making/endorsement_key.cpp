#include "instance/making/endorsement_key.hpp"

#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

// Library part 2: sections 6.3 (TPM_ALG_ID), 7.4 (TPM_RH).
constexpr std::uint16_t type_rsa = 0x0001;
constexpr std::uint16_t type_ecc = 0x0023;
constexpr std::uint16_t symmetric_aes = 0x0006;
constexpr std::uint16_t scheme_null = 0x0010;
constexpr std::uint16_t mode_cfb = 0x0043;
constexpr std::uint16_t curve_p256 = 0x0003; // section 6.4 (TPM_ECC_CURVE)
constexpr std::uint32_t rh_endorsement = 0x4000000B;
constexpr std::uint32_t cc_flush_context = 0x165;
// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt (section 8.3).
constexpr std::uint32_t ek_attributes = 0x000300B2;
/// PolicySecret of the endorsement hierarchy (EK Credential Profile section B.3.3).
constexpr std::string_view ek_policy = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
constexpr std::uint16_t ek_key_bits = 2048;
constexpr std::uint16_t ek_coordinate = 32;
// Response codes: section 6.6.3.
constexpr std::uint32_t rc_object_memory = 0x902;
constexpr std::uint32_t rc_hierarchy = 0x085; ///< format one: it comes with a handle's number
constexpr std::uint32_t rc_bad_auth = 0x0A2;  ///< with a session's
constexpr std::uint32_t rc_auth_fail = 0x08E; ///< with a session's
constexpr std::uint32_t format_one = 0x0BF;   ///< the bits that say which error it is

Bytes create_primary_command(proto::EkKind kind, ByteView policy) {
    const bool rsa = kind == proto::EkKind::rsa_2048;
    WireWriter out = tpm::begin_command(tpm::st_sessions, tpm::cc::create_primary);
    out.be32(rh_endorsement);
    tpm::put_empty_password(out);
    out.be16(4).be16(0).be16(0); // TPM2B_SENSITIVE_CREATE
    WireWriter area;             // TPMT_PUBLIC
    area.be16(rsa ? type_rsa : type_ecc).be16(tpm::alg::sha256).be32(ek_attributes);
    area.be16(static_cast<std::uint16_t>(policy.size())).bytes(policy);
    area.be16(symmetric_aes).be16(128).be16(mode_cfb).be16(scheme_null);
    if (rsa) {
        area.be16(ek_key_bits).be32(0); // the default exponent
        area.be16(ek_key_bits / 8).zeros(ek_key_bits / 8);
    } else {
        area.be16(curve_p256).be16(scheme_null); // no key derivation
        area.be16(ek_coordinate).zeros(ek_coordinate).be16(ek_coordinate).zeros(ek_coordinate);
    }
    out.be16(static_cast<std::uint16_t>(area.size())).bytes(area.view());
    out.be16(0).be32(0); // outsideInfo, creationPCR
    return tpm::finish_command(out);
}

Error not_made(std::uint32_t code) {
    const std::uint32_t kind = (code & 0x80) != 0 ? code & format_one : code;
    if (kind == rc_bad_auth || kind == rc_auth_fail || kind == rc_hierarchy) {
        return make_error(Errc::permission,
                          "the endorsement hierarchy has an authorisation or is disabled (0x{:x}): its key cannot be "
                          "made to be named",
                          code);
    }
    if (code == rc_object_memory) {
        return make_error(Errc::unavailable, "the TPM has no room for one more object: flush one");
    }
    return make_error(Errc::tpm, "the endorsement key was not made: 0x{:x}", code);
}

} // namespace

Result<Bytes> make_endorsement_key_20(Engine& engine, proto::EkKind kind) {
    const bool rsa = kind == proto::EkKind::rsa_2048;
    const Bytes policy = from_hex(ek_policy).value();
    const Bytes answer = engine.execute(create_primary_command(kind, policy), 0);
    const auto header = tpm::parse_header(answer);
    if (!header) {
        return header.error();
    }
    if (header->code != 0) {
        return not_made(header->code);
    }
    WireReader r(answer);
    r.skip(tpm::header_size);
    const std::uint32_t handle = r.be32();
    r.skip(4 + 2);                             // parameterSize, TPM2B_PUBLIC's size
    r.skip(2 + 2 + 4);                         // type, nameAlg, objectAttributes
    r.skip(r.be16());                          // authPolicy
    r.skip(2 + 2 + 2 + 2 + 2 + (rsa ? 4 : 2)); // symmetric, scheme; bits and exponent, or curve and derivation
    Bytes key;
    for (int parts = rsa ? 1 : 2; parts > 0; --parts) {
        const ByteView part = r.bytes(r.be16());
        // libtpms gives coordinates in full length; a TPM need not.
        key.resize(key.size() + (rsa || part.size() > ek_coordinate ? 0 : ek_coordinate - part.size()));
        key.insert(key.end(), part.begin(), part.end());
    }

    WireWriter flush = tpm::begin_command(tpm::st_no_sessions, cc_flush_context);
    flush.be32(handle);
    const Bytes flushed = engine.execute(tpm::finish_command(flush), 0);
    if (auto gone = tpm::check_response(flushed, "unloading the endorsement key"); !gone) {
        return gone.error();
    }
    if (!r.ok() || key.size() != proto::ek_size(kind)) {
        return make_error(Errc::protocol, "the endorsement key came back as something else");
    }
    return key;
}

} // namespace vtpmd::instance
