// What a TPM (or whoever stands at the end of its socket) may answer: no parser reads beyond it, and what a parser
// accepts is within its limits.
#include "fuzz.hpp"

#include "tpm/commands.hpp"
#include "tpm/cost.hpp"

namespace tpm_responses_fuzz {

using namespace vtpmd;

namespace {

std::vector<Bytes> seeds() {
    const auto bytes = [](std::initializer_list<unsigned> list) {
        Bytes b;
        for (unsigned v : list) {
            b.push_back(static_cast<std::byte>(v));
        }
        return b;
    };
    return {
        bytes({0x80, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4}),
        bytes({0, 0xc4, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4}),
        bytes({0x80, 1, 0,  0, 0, 34, 0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0,
               1,    0, 11, 3, 1, 0,  0, 0, 0, 0, 1, 0, 4, 9,  8, 7, 6}),
        bytes({0x80, 1, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 4, 3, 0, 0, 0, 0, 11, 3, 255, 255, 255}),
        tpm::error_response(TpmVersion::tpm20, tpm::Refusal::retry),
    };
}

void run(ByteView packet) {
    for (TpmVersion v : {TpmVersion::tpm12, TpmVersion::tpm20}) {
        if (auto random = tpm::parse_get_random(v, packet)) {
            fuzz::fuzz_check(random->size() < packet.size(), "random bytes are part of the answer");
        }
        (void)tpm::cost(v, packet);
        if (tpm::is_well_formed_response(v, packet)) {
            fuzz::fuzz_check(tpm::parse_header(packet).has_value(), "a well-formed response has a good header");
        }
    }
    (void)tpm::parse_pcr_value(packet);
    if (auto pcrs = tpm::parse_pcr_read(packet)) {
        fuzz::fuzz_check(pcrs->digests.size() <= 8, "at most eight digests");
    }
    if (auto banks = tpm::parse_capability_pcrs(packet)) {
        fuzz::fuzz_check(banks->size() <= 16, "at most sixteen banks");
    }
}

const fuzz::Harness harness("tpm_responses", seeds, run);

} // namespace

} // namespace tpm_responses_fuzz
