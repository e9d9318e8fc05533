// What the engine's tests send: a few whole commands beyond those that the program itself needs.
#pragma once

#include "check.hpp"
#include "engine/engine.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <initializer_list>
#include <memory>

namespace vtpmd::test {

inline constexpr auto v12 = TpmVersion::tpm12;
inline constexpr auto v20 = TpmVersion::tpm20;

inline std::uint32_t code_of(ByteView response) { return tpm::peek_header(response).code; }

inline std::unique_ptr<Engine> powered_on(TpmVersion v, const EngineState& state = {}) {
    auto engine = Engine::create(v).value();
    REQUIRE(engine->power_on(state));
    return engine;
}
inline std::unique_ptr<Engine> started(TpmVersion v, const EngineState& state = {},
                                       tpm::StartupMode mode = tpm::StartupMode::clear) {
    auto engine = powered_on(v, state);
    REQUIRE(code_of(engine->execute(tpm::startup_command(v, mode), 0)) == 0);
    return engine;
}

/// A PCR's value as the guest reads it.
inline Bytes read_pcr(Engine& engine, std::uint16_t alg, unsigned pcr) {
    if (engine.version() == v12) {
        return to_bytes(tpm::parse_pcr_value(engine.execute(tpm::pcr_read_command(pcr), 0)).value());
    }
    const tpm::PcrBank one{alg, 1U << pcr};
    const auto reply = tpm::parse_pcr_read(engine.execute(tpm::pcr_read_command(std::span(&one, 1)), 0));
    return reply.value().digests.at(0);
}
/// Extends the SHA-1 value of a PCR with zeros.
inline Bytes extend_with_zeros(TpmVersion v, unsigned pcr) {
    if (v == v12) {
        return tpm::extend_command(pcr, tpm::Sha1Digest{});
    }
    const tpm::HashValue zeros{tpm::alg::sha1, Bytes(tpm::sha1_size)};
    return tpm::pcr_extend_command(pcr, std::span(&zeros, 1));
}

inline Bytes sized(WireWriter w) {
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    return w.take();
}

/// A TPM 2.0 command with the empty password for its one authorised handle.
inline Bytes with_password(std::uint32_t code, std::initializer_list<std::uint32_t> handles, ByteView parameters) {
    WireWriter w;
    w.be16(tpm::st_sessions).be32(0).be32(code);
    for (auto h : handles) {
        w.be32(h);
    }
    w.be32(9).be32(tpm::rh::pw).be16(0).u8(0).be16(0).bytes(parameters);
    return sized(std::move(w));
}

/// TPM2_NV_DefineSpace: no authorisation value, TPMA_NV_AUTHREAD | AUTHWRITE | NO_DA.
inline Bytes nv_define_20(std::uint32_t index, std::uint16_t size) {
    WireWriter w;
    w.be16(0).be16(14).be32(index).be16(tpm::alg::sha256).be32(0x02040004).be16(0).be16(size);
    return with_password(tpm::cc::nv_define_space, {tpm::rh::owner}, w.view());
}
inline Bytes nv_write_20(std::uint32_t index, ByteView data) {
    WireWriter w;
    w.be16(static_cast<std::uint16_t>(data.size())).bytes(data).be16(0);
    return with_password(tpm::cc::nv_write, {index, index}, w.view());
}
inline Bytes nv_read_20(std::uint32_t index, std::uint16_t size) {
    WireWriter w;
    w.be16(size).be16(0);
    return with_password(tpm::cc::nv_read, {index, index}, w.view());
}
/// The data in TPM2_NV_Read's answer: header, parameterSize, TPM2B_MAX_NV_BUFFER, one session.
inline Bytes nv_data_20(ByteView response) {
    REQUIRE(code_of(response) == 0);
    WireReader r(response);
    r.skip(tpm::header_size + 4);
    const std::size_t n = r.be16();
    const Bytes data = to_bytes(r.bytes(n));
    REQUIRE(r.ok());
    return data;
}

/// TPM2_CreatePrimary of a restricted RSA-2048 decryption key below `hierarchy`; `label` makes it another key.
inline Bytes create_primary_rsa(std::uint32_t hierarchy, std::uint16_t label) {
    WireWriter pub;
    pub.be16(0x0001).be16(tpm::alg::sha256).be32(0x00030072).be16(0); // RSA; fixed, user with auth, restricted decrypt
    pub.be16(0x0006).be16(128).be16(0x0043).be16(0x0010).be16(2048).be32(0).be16(2).be16(label);
    WireWriter w;
    w.be16(4).be32(0); // TPM2B_SENSITIVE_CREATE: no authorisation value, no data
    w.be16(static_cast<std::uint16_t>(pub.size())).bytes(pub.view()).be16(0).be32(0);
    return with_password(tpm::cc::create_primary, {hierarchy}, w.view());
}
inline Bytes flush_20(std::uint32_t handle) {
    WireWriter w;
    w.be16(tpm::st_no_sessions).be32(0).be32(0x165).be32(handle); // TPM2_FlushContext
    return sized(std::move(w));
}

/// TPM_NV_DefineSpace as long as nvLocked is not set: no owner needed; the area may be written with physical presence
/// or, before nvLocked, by anybody.
inline Bytes nv_define_12(std::uint32_t index, std::uint32_t size) {
    WireWriter w;
    w.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::nv_define_space);
    w.be16(0x0018).be32(index);   // TPM_NV_DATA_PUBLIC
    for (int i = 0; i < 2; ++i) { // no PCRs, any locality, for reading and for writing
        w.be16(3).zeros(3).u8(0x1f).zeros(20);
    }
    w.be16(0x0017).be32(0x00000001); // TPM_NV_ATTRIBUTES: PPWRITE
    w.zeros(3).be32(size).zeros(20);
    return sized(std::move(w));
}
inline Bytes nv_write_12(std::uint32_t index, ByteView data) {
    WireWriter w;
    w.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::nv_write_value).be32(index).be32(0);
    w.be32(static_cast<std::uint32_t>(data.size())).bytes(data);
    return sized(std::move(w));
}
inline Bytes nv_read_12(std::uint32_t index, std::uint32_t size) {
    WireWriter w;
    w.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::nv_read_value).be32(index).be32(0).be32(size);
    return sized(std::move(w));
}
inline Bytes nv_data_12(ByteView response) {
    REQUIRE(code_of(response) == 0);
    WireReader r(response);
    r.skip(tpm::header_size);
    const std::size_t n = r.be32();
    const Bytes data = to_bytes(r.bytes(n));
    REQUIRE(r.expect_end());
    return data;
}

} // namespace vtpmd::test
