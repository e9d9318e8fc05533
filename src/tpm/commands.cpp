#include "tpm/commands.hpp"

#include <bit>
#include <cassert>

namespace vtpmd::tpm {

namespace {

constexpr std::uint32_t cap_pcrs = 5;       // TPM_CAP_PCRS, Library part 2 section 6.12
constexpr std::size_t hash_count = 16;      // HASH_COUNT and more: nobody has so many banks
constexpr std::size_t select_bytes = 3;     // PCR_SELECT_MIN of a PC client: 24 PCRs
constexpr std::size_t select_max = 4;       // as many as a PcrBank holds
constexpr std::size_t digests_per_read = 8; // TPML_DIGEST, Library part 2 section 10.9.1
constexpr std::size_t longest_digest = 64;

void write_banks(WireWriter& w, std::span<const PcrBank> banks) {
    w.be32(static_cast<std::uint32_t>(banks.size()));
    for (const PcrBank& b : banks) {
        w.be16(b.alg).u8(select_bytes);
        for (std::size_t i = 0; i < select_bytes; ++i) {
            w.u8(static_cast<std::uint8_t>(b.pcrs >> (8 * i)));
        }
    }
}

/// TPML_PCR_SELECTION. A selection of more than 32 PCRs is a failure of the reader.
std::vector<PcrBank> read_banks(WireReader& r) {
    std::vector<PcrBank> out;
    const std::uint32_t count = r.be32();
    if (count > hash_count) {
        r.fail();
    }
    for (std::uint32_t i = 0; r.ok() && i < count; ++i) {
        PcrBank b;
        b.alg = r.be16();
        const std::size_t n = r.u8();
        if (n > select_max) {
            r.fail();
        }
        for (std::size_t k = 0; r.ok() && k < n; ++k) {
            b.pcrs |= static_cast<std::uint32_t>(r.u8()) << (8 * k);
        }
        out.push_back(b);
    }
    return out;
}

Error malformed(std::string_view what, ByteView response) {
    return make_error(Errc::protocol, "{}: the TPM's answer of {} bytes is malformed", what, response.size());
}

/// A reader behind the header of a good answer.
Result<WireReader> body(ByteView response, std::string_view what) {
    if (auto ok = check_response(response, what); !ok) {
        return ok.error();
    }
    return WireReader(response.subspan(header_size));
}

} // namespace

WireWriter begin_command(std::uint16_t tag, std::uint32_t code) {
    WireWriter w(64);
    w.be16(tag).be32(0).be32(code);
    return w;
}

Bytes finish_command(WireWriter& command) {
    command.patch_be32(2, static_cast<std::uint32_t>(command.size()));
    return command.take();
}

void put_empty_password(WireWriter& command) { command.be32(9).be32(rh::pw).be16(0).u8(0).be16(0); }

std::size_t digest_size(std::uint16_t hash_alg) noexcept {
    switch (hash_alg) {
    case alg::sha1:
        return sha1_size;
    case alg::sha256:
        return 32;
    case alg::sha384:
        return 48;
    case alg::sha512:
        return 64;
    default:
        return 0;
    }
}

Result<void> check_response(ByteView response, std::string_view what) {
    auto h = parse_header(response);
    if (!h) {
        return in_context(h.error(), what);
    }
    if (h->code != 0) {
        Error e = make_error(Errc::tpm, "{}: the TPM answered {:#x}", what, h->code);
        e.detail = h->code;
        return e;
    }
    return {};
}

Bytes startup_command(TpmVersion version, StartupMode mode) {
    if (version == TpmVersion::tpm12) {
        WireWriter w = begin_command(tag_rqu_command, ord::startup);
        w.be16(mode == StartupMode::clear ? 1 : mode == StartupMode::state ? 2 : 3);
        return finish_command(w);
    }
    assert(mode != StartupMode::deactivated);
    WireWriter w = begin_command(st_no_sessions, cc::startup);
    w.be16(mode == StartupMode::state ? 1 : 0);
    return finish_command(w);
}

Bytes save_state_command() {
    WireWriter w = begin_command(tag_rqu_command, ord::save_state);
    return finish_command(w);
}

Bytes shutdown_command(StartupMode mode) {
    assert(mode != StartupMode::deactivated);
    WireWriter w = begin_command(st_no_sessions, cc::shutdown);
    w.be16(mode == StartupMode::state ? 1 : 0);
    return finish_command(w);
}

Bytes get_random_command(TpmVersion version, std::uint16_t count) {
    if (version == TpmVersion::tpm12) {
        WireWriter w = begin_command(tag_rqu_command, ord::get_random);
        w.be32(count);
        return finish_command(w);
    }
    WireWriter w = begin_command(st_no_sessions, cc::get_random);
    w.be16(count);
    return finish_command(w);
}

Result<Bytes> parse_get_random(TpmVersion version, ByteView response) {
    constexpr std::string_view what = "GetRandom";
    auto r = body(response, what);
    if (!r) {
        return r.error();
    }
    const std::size_t n = version == TpmVersion::tpm12 ? r->be32() : r->be16();
    const ByteView random = r->bytes(n);
    if (!r->expect_end()) {
        return malformed(what, response);
    }
    return to_bytes(random);
}

Bytes extend_command(unsigned pcr, const Sha1Digest& digest) {
    WireWriter w = begin_command(tag_rqu_command, ord::extend);
    w.be32(pcr).bytes(digest);
    return finish_command(w);
}

Bytes pcr_read_command(unsigned pcr) {
    WireWriter w = begin_command(tag_rqu_command, ord::pcr_read);
    w.be32(pcr);
    return finish_command(w);
}

Result<Sha1Digest> parse_pcr_value(ByteView response) {
    constexpr std::string_view what = "reading a PCR";
    auto r = body(response, what);
    if (!r) {
        return r.error();
    }
    const Sha1Digest value = r->array<sha1_size>();
    if (!r->expect_end()) {
        return malformed(what, response);
    }
    return value;
}

Bytes pcr_extend_command(unsigned pcr, std::span<const HashValue> values) {
    WireWriter w = begin_command(st_sessions, cc::pcr_extend);
    w.be32(pcr);
    put_empty_password(w);
    w.be32(static_cast<std::uint32_t>(values.size()));
    for (const HashValue& v : values) {
        w.be16(v.alg).bytes(v.digest);
    }
    return finish_command(w);
}

Bytes pcr_read_command(std::span<const PcrBank> banks) {
    WireWriter w = begin_command(st_no_sessions, cc::pcr_read);
    write_banks(w, banks);
    return finish_command(w);
}

Result<PcrReadReply> parse_pcr_read(ByteView response) {
    constexpr std::string_view what = "reading PCRs";
    auto r = body(response, what);
    if (!r) {
        return r.error();
    }
    PcrReadReply out;
    out.update_counter = r->be32();
    out.banks = read_banks(*r);
    std::size_t named = 0;
    for (const PcrBank& b : out.banks) {
        named += static_cast<std::size_t>(std::popcount(b.pcrs));
    }
    const std::uint32_t count = r->be32();
    if (count > digests_per_read || count != named) {
        r->fail();
    }
    for (std::uint32_t i = 0; r->ok() && i < count; ++i) {
        const std::size_t n = r->be16();
        if (n > longest_digest) {
            r->fail();
        }
        out.digests.push_back(to_bytes(r->bytes(n)));
    }
    if (!r->expect_end()) {
        return malformed(what, response);
    }
    return out;
}

Bytes get_capability_pcrs_command() {
    WireWriter w = begin_command(st_no_sessions, cc::get_capability);
    w.be32(cap_pcrs).be32(0).be32(1);
    return finish_command(w);
}

Result<std::vector<PcrBank>> parse_capability_pcrs(ByteView response) {
    constexpr std::string_view what = "asking for the PCR banks";
    auto r = body(response, what);
    if (!r) {
        return r.error();
    }
    r->u8(); // moreData: the banks come all at once
    if (r->be32() != cap_pcrs) {
        r->fail();
    }
    std::vector<PcrBank> out = read_banks(*r);
    if (!r->expect_end()) {
        return malformed(what, response);
    }
    return out;
}

Bytes pcr_allocate_command(std::span<const PcrBank> banks) {
    WireWriter w = begin_command(st_sessions, cc::pcr_allocate);
    w.be32(rh::platform);
    put_empty_password(w);
    write_banks(w, banks);
    return finish_command(w);
}

Result<bool> parse_pcr_allocate(ByteView response) {
    constexpr std::string_view what = "choosing the PCR banks";
    auto r = body(response, what);
    if (!r) {
        return r.error();
    }
    r->be32(); // parameterSize
    const bool done = r->u8() != 0;
    r->be32(); // maxPCR
    r->be32(); // sizeNeeded
    r->be32(); // sizeAvailable
    // One TPMS_AUTH_RESPONSE of a password session: no nonce, the attributes, no digest.
    r->be16();
    r->u8();
    r->be16();
    if (!r->expect_end()) {
        return malformed(what, response);
    }
    return done;
}

} // namespace vtpmd::tpm
