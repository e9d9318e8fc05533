#include "hwtpm/drivers/measurements.hpp"

#include "hwtpm/root_of_trust.hpp"
#include "util/text.hpp"

namespace vtpmd::hwtpm {

namespace {

std::vector<std::string_view> words(std::string_view line) {
    std::vector<std::string_view> out;
    constexpr std::string_view blanks = " \t\r";
    for (std::size_t at = line.find_first_not_of(blanks); at != std::string_view::npos;) {
        const std::size_t end = line.find_first_of(blanks, at);
        out.push_back(line.substr(at, end - at));
        at = line.find_first_not_of(blanks, end);
    }
    return out;
}

} // namespace

Result<std::vector<Measurement>> parse_measurements(std::string_view text) {
    std::vector<Measurement> out;
    unsigned number = 0;
    for (std::string_view line : split(text, '\n')) {
        ++number;
        const auto w = words(line.substr(0, line.find('#')));
        if (w.empty()) {
            continue;
        }
        auto pcr = parse_number(w[0], tpm::pcr_count - 1);
        auto digest = w.size() == 2 ? from_hex(w[1]) : Result<Bytes>(make_error(Errc::usage, "no digest"));
        if (!pcr || !digest) {
            return make_error(Errc::usage, "line {}: expected a PCR (0 to 23) and a digest in hexadecimal", number);
        }
        HashAlg bank{};
        switch (digest->size()) {
        case 20:
            bank = HashAlg::sha1;
            break;
        case 32:
            bank = HashAlg::sha256;
            break;
        case 48:
            bank = HashAlg::sha384;
            break;
        case 64:
            bank = HashAlg::sha512;
            break;
        default:
            return make_error(Errc::usage, "line {}: a digest of {} bytes: 20, 32, 48 or 64 are possible", number,
                              digest->size());
        }
        out.push_back({static_cast<unsigned>(*pcr), {static_cast<std::uint16_t>(bank), std::move(*digest)}});
    }
    return out;
}

} // namespace vtpmd::hwtpm
