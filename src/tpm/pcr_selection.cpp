#include "tpm/pcr.hpp"

#include "util/text.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

std::string_view bank_name(HashAlg bank) {
    switch (bank) {
    case HashAlg::sha1:
        return "sha1";
    case HashAlg::sha256:
        return "sha256";
    case HashAlg::sha384:
        return "sha384";
    case HashAlg::sha512:
        return "sha512";
    }
    return "unknown";
}

std::size_t digest_size(HashAlg bank) {
    switch (bank) {
    case HashAlg::sha1:
        return 20;
    case HashAlg::sha256:
        return 32;
    case HashAlg::sha384:
        return 48;
    case HashAlg::sha512:
        return 64;
    }
    return 0;
}

Result<PcrSelection> parse_pcr_selection(std::string_view text) {
    auto bad = [&](std::string_view why) {
        return make_error(Errc::usage, "PCR selection '{}': {} (like sha256:0,2,4,7, or none)", printable(text), why);
    };
    if (text == "none") {
        return PcrSelection{};
    }
    auto colon = text.find(':');
    if (colon == std::string_view::npos) {
        return bad("no bank");
    }
    PcrSelection out;
    std::string_view bank = text.substr(0, colon);
    auto all = {HashAlg::sha1, HashAlg::sha256, HashAlg::sha384, HashAlg::sha512};
    auto found = std::find_if(all.begin(), all.end(), [&](HashAlg a) { return bank_name(a) == bank; });
    if (found == all.end()) {
        return bad("the bank is sha1, sha256, sha384 or sha512");
    }
    out.bank = *found;
    for (std::string_view item : split(text.substr(colon + 1), ',')) {
        auto dash = item.find('-');
        auto first = parse_number(item.substr(0, dash), pcr_count - 1);
        auto last = dash == std::string_view::npos ? first : parse_number(item.substr(dash + 1), pcr_count - 1);
        if (!first || !last || *first > *last) {
            return bad("an index is a number from 0 to 23, or a range of them");
        }
        for (std::uint64_t i = *first; i <= *last; ++i) {
            out.pcrs.push_back(static_cast<unsigned>(i));
        }
    }
    std::sort(out.pcrs.begin(), out.pcrs.end());
    if (std::adjacent_find(out.pcrs.begin(), out.pcrs.end()) != out.pcrs.end()) {
        return bad("an index stands there twice");
    }
    return out;
}

std::string to_string(const PcrSelection& selection) {
    if (selection.pcrs.empty()) {
        return "none";
    }
    return fmt::format("{}:{}", bank_name(selection.bank), fmt::join(selection.pcrs, ","));
}

bool untouched(ByteView digest) {
    auto all = [&](std::byte b) {
        return std::all_of(digest.begin(), digest.end(), [b](std::byte x) { return x == b; });
    };
    return all(std::byte{0x00}) || all(std::byte{0xFF});
}

bool fits(const std::vector<PcrValue>& values, const PcrSelection& selection) {
    return std::ranges::equal(values, selection.pcrs, [&](const PcrValue& v, unsigned index) {
        return v.bank == selection.bank && v.index == index && v.digest.size() == digest_size(v.bank);
    });
}

std::vector<std::string> pcr_differences(const std::vector<PcrValue>& sealed, const std::vector<PcrValue>& present) {
    std::vector<std::string> out;
    for (const PcrValue& s : sealed) {
        auto now = std::find_if(present.begin(), present.end(),
                                [&](const PcrValue& p) { return p.bank == s.bank && p.index == s.index; });
        if (now == present.end()) {
            out.push_back(
                fmt::format("{}:{} sealed={} now=(bank not there)", bank_name(s.bank), s.index, to_hex(s.digest)));
        } else if (now->digest != s.digest) {
            out.push_back(fmt::format("{}:{} sealed={} now={}", bank_name(s.bank), s.index, to_hex(s.digest),
                                      to_hex(now->digest)));
        }
    }
    return out;
}

} // namespace vtpmd::hwtpm
