// Which PCRs, and what they hold.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::hwtpm {

enum class HashAlg : std::uint16_t { sha1 = 0x0004, sha256 = 0x000b, sha384 = 0x000c, sha512 = 0x000d }; // TPM_ALG_ID

/// "sha256:0,2,4,7": one bank, PCR indices 0-23, ascending. Empty pcrs: sealed to no PCR ("none").
struct PcrSelection {
    HashAlg bank = HashAlg::sha256;
    std::vector<unsigned> pcrs;
    friend bool operator==(const PcrSelection&, const PcrSelection&) = default;
};
[[nodiscard]] Result<PcrSelection> parse_pcr_selection(std::string_view text);
[[nodiscard]] std::string to_string(const PcrSelection& selection);

struct PcrValue {
    HashAlg bank;
    unsigned index;
    Bytes digest;
    friend bool operator==(const PcrValue&, const PcrValue&) = default;
};

} // namespace vtpmd::hwtpm
