#include "inputs.hpp"

#include "tpm/pcr.hpp"
#include "tpm/public_key.hpp"
#include "util/text.hpp"

namespace vtpmctl {

using namespace vtpmd;

std::vector<hwtpm::PcrValue> pcrs_of(const Options& o, const std::string& name) {
    std::vector<hwtpm::PcrValue> out;
    for (const std::string& text : o.all(name)) {
        const std::string what = fmt::format("--{}={}", name, printable(text));
        const std::size_t equals = text.find('=');
        if (equals == std::string::npos) {
            fail(EX_USAGE, fmt::format("{}: expected BANK:INDEX=HEX, like sha256:4=2d1f...; see vtpmctl {} --help",
                                       what, o.command));
        }
        const auto which = must(hwtpm::parse_pcr_selection(std::string_view(text).substr(0, equals)), what);
        Bytes value = must(from_hex(std::string_view(text).substr(equals + 1)), what);
        if (which.pcrs.size() != 1 || value.size() != hwtpm::digest_size(which.bank)) {
            fail(EX_USAGE, fmt::format("{}: expected one PCR and the {} bytes of its value in hexadecimal", what,
                                       hwtpm::digest_size(which.bank)));
        }
        out.push_back({.bank = which.bank, .index = which.pcrs.front(), .digest = std::move(value)});
    }
    return out;
}

Bytes public_key_of(const Options& o, const std::string& name, std::string_view what) {
    const std::string path = o.needed(name, what);
    return must(hwtpm::spki_of_pem(read_file(path)), fmt::format("--{}={}", name, path), EX_DATAERR);
}

} // namespace vtpmctl
