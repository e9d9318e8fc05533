// What a toolstack sends to the privileged socket: nothing hurts, and what is taken says itself again in the same bytes.
#include "fuzz.hpp"
#include "proto/vtpm_managerd/messages.hpp"

#include <algorithm>

namespace legacy_fuzz {

using namespace vtpmd;
using namespace vtpmd::proto;

namespace {

std::vector<Bytes> seeds() {
    return {
        legacy::encode(legacy::Open{.migratable = true, .start = legacy::Start::resume, .hvm = true, .instance = 7}),
        legacy::encode(legacy::Close{.instance = 7}), legacy::encode(legacy::Delete{.instance = 7})};
}

void run(ByteView bytes) {
    const auto whole = legacy::request_size(bytes.first(std::min(bytes.size(), legacy::header_size)));
    fuzz::fuzz_check(!whole || (*whole >= legacy::header_size && *whole <= legacy::request_limit),
                     "a request is small");
    const legacy::Request request = legacy::parse(bytes);
    if (const auto* refused = std::get_if<legacy::Refused>(&request)) {
        fuzz::fuzz_check(!refused->why.empty() && refused->status != legacy::Status::success, "a refusal says why");
        return;
    }
    Bytes again;
    if (const auto* open = std::get_if<legacy::Open>(&request)) {
        again = legacy::encode(*open);
    } else if (const auto* close = std::get_if<legacy::Close>(&request)) {
        again = legacy::encode(*close);
    } else {
        again = legacy::encode(std::get<legacy::Delete>(request));
    }
    fuzz::fuzz_check(std::ranges::equal(again, bytes), "a request that was taken is sent the same");
}

const fuzz::Harness harness("legacy", seeds, run);

} // namespace

} // namespace legacy_fuzz
