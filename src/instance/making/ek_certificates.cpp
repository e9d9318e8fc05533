#include "instance/making/ek_certificates.hpp"

#include "instance/making/endorsement_key.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {

// Library part 2: sections 6.12 (TPM_CAP), 6.13 (TPM_PT), 13.4 (TPMA_NV).
constexpr std::uint32_t cap_tpm_properties = 6;
constexpr std::uint32_t pt_family = 0x100;
constexpr std::uint32_t pt_level = 0x101;
constexpr std::uint32_t pt_revision = 0x102;
constexpr std::uint32_t pt_manufacturer = 0x105;
constexpr std::uint32_t pt_firmware_version = 0x10B;
constexpr std::uint32_t nv_pp_write = 1U << 0U;
constexpr std::uint32_t nv_write_define = 1U << 13U;
constexpr std::uint32_t nv_pp_read = 1U << 16U;
constexpr std::uint32_t nv_owner_read = 1U << 17U;
constexpr std::uint32_t nv_auth_read = 1U << 18U;
constexpr std::uint32_t nv_no_da = 1U << 25U;
constexpr std::uint32_t nv_platform_create = 1U << 30U;
/// Of a certificate's index: EK Credential Profile, section 2.2.1.
constexpr std::uint32_t nv_certificate =
    nv_pp_write | nv_write_define | nv_pp_read | nv_owner_read | nv_auth_read | nv_no_da | nv_platform_create;
/// TPM_PT_NV_BUFFER_MAX is 512 at least in a PC client's TPM.
constexpr std::size_t nv_chunk = 512;
struct CertificatePlace {
    proto::EkKind kind;
    std::uint32_t index;
};
constexpr CertificatePlace places_20[] = {{proto::EkKind::rsa_2048, nv_ek_certificate_rsa},
                                          {proto::EkKind::ecc_p256, nv_ek_certificate_ecc}};

// Main part 2: sections 21.1 (TPM_CAP_VERSION_VAL), 19.1 to 19.3 (NV); the specification that libtpms implements.
constexpr std::uint32_t cap_version_val = 0x1A;
constexpr std::uint16_t tag_nv_attributes = 0x0017;
constexpr std::uint16_t tag_nv_data_public = 0x0018;
constexpr std::uint32_t nv_per_pp_write = 0x00000001;
constexpr std::uint32_t nv_per_owner_read = 0x00020000;
constexpr std::uint8_t any_locality = 0x1F;
constexpr std::uint32_t revision_12 = 116;
// PC Client Implementation Specification, section 7.4.5.
constexpr std::uint16_t stored_cert = 0x1001;
constexpr std::uint16_t full_cert_tag = 0x1002;
constexpr std::uint8_t full_cert = 0;

// --- TPM 2.0 ---

Result<proto::TpmDescription> describe_20(Engine& engine) {
    constexpr std::uint32_t properties = pt_firmware_version - pt_family + 1;
    WireWriter ask = tpm::begin_command(tpm::st_no_sessions, tpm::cc::get_capability);
    ask.be32(cap_tpm_properties).be32(pt_family).be32(properties);
    const Bytes answer = engine.execute(tpm::finish_command(ask), 0);
    if (auto good = tpm::check_response(answer, "what a new TPM says of itself"); !good) {
        return good.error();
    }
    WireReader r(answer);
    r.skip(tpm::header_size + 1 + 4); // moreData, capability
    proto::TpmDescription out;
    for (std::uint32_t n = r.be32(); n > 0 && r.ok(); --n) {
        const std::uint32_t property = r.be32();
        const std::uint32_t value = r.be32();
        for (auto [which, to] : {std::pair{pt_level, &out.level},
                                 {pt_revision, &out.revision},
                                 {pt_manufacturer, &out.manufacturer},
                                 {pt_firmware_version, &out.firmware}}) {
            if (property == which) {
                *to = value;
            }
        }
    }
    if (!r.expect_end() || out.manufacturer == 0) {
        return make_error(Errc::protocol, "a new TPM says of itself what cannot be read");
    }
    return out;
}

Result<void> write_nv_20(Engine& engine, std::uint32_t index, ByteView data) {
    // TPM2_NV_DefineSpace, Library part 3 section 31.3
    WireWriter define = tpm::begin_command(tpm::st_sessions, tpm::cc::nv_define_space);
    define.be32(tpm::rh::platform);
    tpm::put_empty_password(define);
    define.be16(0); // its own authorisation: empty
    define.be16(4 + 2 + 4 + 2 + 2).be32(index).be16(tpm::alg::sha256).be32(nv_certificate).be16(0); // no policy
    define.be16(static_cast<std::uint16_t>(data.size()));
    const Bytes defined = engine.execute(tpm::finish_command(define), 0);
    auto done = tpm::check_response(defined, "room in NV for an endorsement key's certificate");
    for (std::size_t at = 0; done && at < data.size(); at += nv_chunk) {
        const ByteView part = data.subspan(at, std::min(nv_chunk, data.size() - at));
        WireWriter write = tpm::begin_command(tpm::st_sessions, tpm::cc::nv_write); // TPM2_NV_Write, section 31.7
        write.be32(tpm::rh::platform).be32(index);
        tpm::put_empty_password(write);
        write.be16(static_cast<std::uint16_t>(part.size())).bytes(part).be16(static_cast<std::uint16_t>(at));
        const Bytes written = engine.execute(tpm::finish_command(write), 0);
        done = tpm::check_response(written, "writing an endorsement key's certificate");
    }
    return done;
}

// --- TPM 1.2 ---

Result<proto::TpmDescription> describe_12(Engine& engine) {
    WireWriter ask = tpm::begin_command(tpm::tag_rqu_command, tpm::ord::get_capability);
    ask.be32(cap_version_val).be32(0);
    const Bytes answer = engine.execute(tpm::finish_command(ask), 0);
    if (auto good = tpm::check_response(answer, "what a new TPM says of itself"); !good) {
        return good.error();
    }
    WireReader r(answer); // TPM_CAP_VERSION_INFO, Main part 2 section 21.6
    r.skip(tpm::header_size + 4 + 2);
    r.skip(2); // the specification's version, 1.2
    proto::TpmDescription out;
    const std::uint32_t major = r.u8();
    out.firmware = major << 16U | r.u8();
    out.level = r.be16();
    r.skip(1); // its errata
    out.manufacturer = r.be32();
    out.revision = revision_12;
    if (!r.ok()) {
        return make_error(Errc::protocol, "a new TPM says of itself what cannot be read");
    }
    return out;
}

/// TPM_PUBKEY (Main part 2 section 10.5) of an RSA key, and what follows it.
Result<Bytes> modulus_of_answer(ByteView answer) {
    WireReader r(answer);
    r.skip(tpm::header_size + 4 + 2 + 2); // algorithm and its schemes
    r.skip(r.be32());                     // TPM_RSA_KEY_PARMS
    Bytes modulus = to_bytes(r.bytes(r.be32()));
    if (!r.ok() || modulus.size() != proto::ek_modulus_size) {
        return make_error(Errc::protocol, "the endorsement key came back as something else");
    }
    return modulus;
}

/// As long as NV is not locked, which is its guest's to do, nothing here needs an authorisation; afterwards, reading is the owner's.
Result<void> write_nv_12(Engine& engine, std::uint32_t index, ByteView data) {
    // TPM_NV_DefineSpace, Main part 3 section 20.1
    WireWriter define = tpm::begin_command(tpm::tag_rqu_command, tpm::ord::nv_define_space);
    define.be16(tag_nv_data_public).be32(index);
    for (int i = 0; i < 2; ++i) { // TPM_PCR_INFO_SHORT for reading and for writing: no PCR
        define.be16(3).zeros(3).u8(any_locality).zeros(tpm::sha1_size);
    }
    define.be16(tag_nv_attributes).be32(nv_per_owner_read | nv_per_pp_write).zeros(3);
    define.be32(static_cast<std::uint32_t>(data.size())).zeros(tpm::sha1_size);
    const Bytes defined = engine.execute(tpm::finish_command(define), 0);
    auto done = tpm::check_response(defined, "room in NV for the endorsement key's certificate");
    for (std::size_t at = 0; done && at < data.size(); at += nv_chunk) {
        const ByteView part = data.subspan(at, std::min(nv_chunk, data.size() - at));
        // TPM_NV_WriteValue, section 20.2
        WireWriter write = tpm::begin_command(tpm::tag_rqu_command, tpm::ord::nv_write_value);
        write.be32(index).be32(static_cast<std::uint32_t>(at));
        write.be32(static_cast<std::uint32_t>(part.size())).bytes(part);
        const Bytes written = engine.execute(tpm::finish_command(write), 0);
        done = tpm::check_response(written, "writing the endorsement key's certificate");
    }
    return done;
}

} // namespace

Task<Result<void>> certify_keys_20(Engine& engine, Worker& worker, proto::ManagerClient& manager) {
    auto description = describe_20(engine);
    if (!description) {
        co_return description.error();
    }
    for (const CertificatePlace& place : places_20) {
        auto key = co_await worker.run([&engine, &place] { return make_endorsement_key_20(engine, place.kind); });
        if (!key) {
            co_return key.error();
        }
        proto::CertifyRequest request;
        request.kind = place.kind;
        request.key = std::move(*key);
        request.tpm = *description;
        auto certificate = co_await manager.certify(std::move(request));
        if (!certificate) {
            co_return certificate.error();
        }
        if (auto written = write_nv_20(engine, place.index, *certificate); !written) {
            co_return written;
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> certify_key_12(Engine& engine, Bytes answer, proto::ManagerClient& manager) {
    auto description = describe_12(engine);
    auto modulus = modulus_of_answer(answer);
    if (!description || !modulus) {
        co_return description ? modulus.error() : description.error();
    }
    proto::CertifyRequest request;
    request.key = std::move(*modulus);
    request.tpm = *description;
    auto certificate = co_await manager.certify(std::move(request));
    if (!certificate) {
        co_return certificate.error();
    }
    WireWriter stored;
    stored.be16(stored_cert).u8(full_cert).be16(static_cast<std::uint16_t>(2 + certificate->size()));
    stored.be16(full_cert_tag).bytes(*certificate);
    co_return write_nv_12(engine, nv_ek_certificate_12, stored.view());
}

} // namespace vtpmd::instance
