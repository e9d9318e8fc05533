#include "manager/links/tpm_proxy.hpp"

#include "tpm/commands.hpp"
#include "tpm/header.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

constexpr std::uint32_t random_limit_12 = 2048;
constexpr std::uint16_t random_limit_20 = 64;
constexpr std::size_t values_limit_20 = 8; // TPML_DIGEST holds as many
constexpr std::uint32_t banks_limit_20 = 16;
constexpr std::uint8_t select_bytes_limit = 4;

constexpr std::uint32_t tpm_bad_index = 2;   // TPM_BADINDEX, Main part 2 section 16
constexpr std::uint32_t tpm_rc_size = 0x0D5; // TPM_RC_SIZE of parameter 1, Library part 2 section 6.6.3
constexpr std::uint32_t tpm_rc_hash = 0x1C3; // TPM_RC_HASH of parameter 1

Bytes response(std::uint16_t tag, ByteView body) {
    WireWriter out(tpm::header_size + body.size());
    out.be16(tag).be32(static_cast<std::uint32_t>(tpm::header_size + body.size())).be32(0).bytes(body);
    return out.take();
}

Bytes refuse_12(tpm::Refusal reason) { return tpm::error_response(TpmVersion::tpm12, reason); }

// --- TPM 1.2 ---

Task<Result<Bytes>> get_random_12(hwtpm::RootOfTrust& root, WireReader in) {
    std::uint32_t wanted = in.be32();
    if (!in.expect_end()) {
        co_return refuse_12(tpm::Refusal::bad_size);
    }
    WireWriter body;
    if (wanted == 0) {
        body.be32(0);
        co_return response(tpm::tag_rsp_command, body.view());
    }
    auto bytes = co_await root.random(std::min(wanted, random_limit_12));
    if (!bytes) {
        co_return bytes.error();
    }
    body.be32(static_cast<std::uint32_t>(bytes->size())).bytes(*bytes);
    co_return response(tpm::tag_rsp_command, body.view());
}

Task<Result<Bytes>> pcr_read_12(hwtpm::RootOfTrust& root, WireReader in) {
    std::uint32_t index = in.be32();
    if (!in.expect_end()) {
        co_return refuse_12(tpm::Refusal::bad_size);
    }
    const auto banks = root.banks();
    if (index >= tpm::pcr_count || !std::ranges::count(banks, hwtpm::HashAlg::sha1)) {
        co_return tpm::error_response(TpmVersion::tpm12, tpm_bad_index);
    }
    std::vector<hwtpm::PcrSelection> wanted{{.bank = hwtpm::HashAlg::sha1, .pcrs = {index}}};
    auto values = co_await root.pcr_read(std::move(wanted));
    if (!values) {
        co_return values.error();
    }
    if (values->size() != 1 || values->front().digest.size() != tpm::sha1_size) {
        co_return tpm::error_response(TpmVersion::tpm12, tpm_bad_index);
    }
    co_return response(tpm::tag_rsp_command, values->front().digest);
}

Task<Result<Bytes>> extend_12(hwtpm::RootOfTrust& root, WireReader in) {
    const std::uint32_t index = in.be32();
    Bytes digest = to_bytes(in.bytes(tpm::sha1_size));
    if (!in.expect_end()) {
        co_return refuse_12(tpm::Refusal::bad_size);
    }
    const auto banks = root.banks();
    if (index >= tpm::pcr_count || !std::ranges::count(banks, hwtpm::HashAlg::sha1)) {
        co_return tpm::error_response(TpmVersion::tpm12, tpm_bad_index);
    }
    auto value = co_await root.pcr_extend(index, std::move(digest));
    if (!value) {
        co_return value.error();
    }
    co_return response(tpm::tag_rsp_command, *value);
}

// --- TPM 2.0 ---

Task<Result<Bytes>> get_random_20(hwtpm::RootOfTrust& root, WireReader in) {
    std::uint16_t wanted = in.be16();
    if (!in.expect_end()) {
        co_return tpm::error_response(TpmVersion::tpm20, tpm_rc_size);
    }
    Bytes bytes;
    if (wanted != 0) {
        auto got = co_await root.random(std::min(wanted, random_limit_20));
        if (!got) {
            co_return got.error();
        }
        bytes = std::move(*got);
    }
    WireWriter body;
    body.be16(static_cast<std::uint16_t>(bytes.size())).bytes(bytes);
    co_return response(tpm::st_no_sessions, body.view());
}

/// One TPMS_PCR_SELECTION, with as many bytes of bitmap as the caller sent.
struct Bank {
    hwtpm::HashAlg alg{};
    std::uint8_t select_bytes = 0;
    std::uint32_t pcrs = 0;
};

bool known_hash(std::uint16_t alg) { return tpm::digest_size(alg) != 0; }

struct ParsedSelection {
    std::vector<Bank> banks;
    std::uint32_t error = 0; ///< a TPM 2.0 return code
};

ParsedSelection parse_selection(WireReader& in) {
    ParsedSelection out;
    std::uint32_t count = in.be32();
    if (count > banks_limit_20) {
        return {.banks = {}, .error = tpm_rc_size};
    }
    for (std::uint32_t i = 0; i < count && in.ok(); ++i) {
        std::uint16_t alg = in.be16();
        Bank bank{.alg = static_cast<hwtpm::HashAlg>(alg), .select_bytes = in.u8()};
        if (bank.select_bytes > select_bytes_limit) {
            return {.banks = {}, .error = tpm_rc_size};
        }
        for (unsigned b = 0; b < bank.select_bytes; ++b) {
            bank.pcrs |= std::uint32_t{in.u8()} << (8 * b);
        }
        if (in.ok() && !known_hash(alg)) {
            return {.banks = {}, .error = tpm_rc_hash};
        }
        out.banks.push_back(bank);
    }
    if (!in.expect_end()) {
        return {.banks = {}, .error = tpm_rc_size};
    }
    return out;
}

/// The first PCRs of the selection, as many as fit into one answer.
std::vector<hwtpm::PcrSelection> first_values(const std::vector<Bank>& banks) {
    std::vector<hwtpm::PcrSelection> out;
    std::size_t left = values_limit_20;
    for (const Bank& bank : banks) {
        hwtpm::PcrSelection one{.bank = bank.alg, .pcrs = {}};
        for (unsigned p = 0; p < tpm::pcr_count && left > 0; ++p) {
            if ((bank.pcrs >> p & 1U) != 0) {
                one.pcrs.push_back(p);
                --left;
            }
        }
        if (!one.pcrs.empty()) {
            out.push_back(std::move(one));
        }
    }
    return out;
}

Task<Result<Bytes>> pcr_read_20(hwtpm::RootOfTrust& root, WireReader in) {
    ParsedSelection selection = parse_selection(in);
    if (selection.error != 0) {
        co_return tpm::error_response(TpmVersion::tpm20, selection.error);
    }
    // Banks that the hardware has not would take up room that values of others need.
    const auto present = root.banks();
    for (Bank& bank : selection.banks) {
        if (std::ranges::count(present, bank.alg) == 0) {
            bank.pcrs = 0;
        }
    }
    std::vector<hwtpm::PcrValue> values;
    if (auto wanted = first_values(selection.banks); !wanted.empty()) {
        auto got = co_await root.pcr_read(std::move(wanted));
        if (!got) {
            co_return got.error();
        }
        values = std::move(*got);
    }
    WireWriter body;
    body.be32(0).be32(static_cast<std::uint32_t>(selection.banks.size()));
    WireWriter digests;
    std::uint32_t count = 0;
    for (Bank& bank : selection.banks) {
        std::uint32_t answered = 0;
        for (const auto& v : values) {
            if (v.bank == bank.alg && v.index < tpm::pcr_count && (bank.pcrs >> v.index & 1U) != 0 &&
                count < values_limit_20) {
                answered |= 1U << v.index;
                digests.be16(static_cast<std::uint16_t>(v.digest.size())).bytes(v.digest);
                ++count;
            }
        }
        body.be16(static_cast<std::uint16_t>(bank.alg)).u8(bank.select_bytes);
        for (unsigned b = 0; b < bank.select_bytes; ++b) {
            body.u8(static_cast<std::uint8_t>(answered >> (8 * b)));
        }
    }
    body.be32(count).bytes(digests.view());
    co_return response(tpm::st_no_sessions, body.view());
}

} // namespace

Task<Result<Bytes>> run_tpm_command(hwtpm::RootOfTrust& root, Bytes command, PeerRight right) {
    auto header = tpm::parse_header(command);
    bool is_20 = tpm::peek_header(command).tag == tpm::st_no_sessions;
    if (!header) {
        co_return tpm::error_response(is_20 ? TpmVersion::tpm20 : TpmVersion::tpm12, tpm::Refusal::bad_size);
    }
    WireReader body(ByteView(command).subspan(tpm::header_size));
    if (header->tag == tpm::tag_rqu_command) {
        switch (header->code) {
        case tpm::ord::get_random:
            co_return co_await get_random_12(root, body);
        case tpm::ord::pcr_read:
            co_return co_await pcr_read_12(root, body);
        case tpm::ord::extend:
            if (right == PeerRight::administrator) {
                co_return co_await extend_12(root, body);
            }
            co_return refuse_12(tpm::Refusal::bad_ordinal);
        default:
            co_return refuse_12(tpm::Refusal::bad_ordinal);
        }
    }
    if (is_20) {
        switch (header->code) {
        case tpm::cc::get_random:
            co_return co_await get_random_20(root, body);
        case tpm::cc::pcr_read:
            co_return co_await pcr_read_20(root, body);
        default:
            co_return tpm::error_response(TpmVersion::tpm20, tpm::Refusal::bad_ordinal);
        }
    }
    co_return refuse_12(tpm::Refusal::bad_tag);
}

} // namespace vtpmd::manager
