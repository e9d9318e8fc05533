// A device model's control channel: any bytes. What the measure says is what the parser takes, and what it parsed is carried
// out on a TPM behind it with an answer of the right form.
#include "fake_service.hpp"
#include "fuzz.hpp"
#include "guest/control.hpp"
#include "instance/migration/handover.hpp"
#include "loop.hpp"

namespace control_fuzz {

using namespace vtpmd;
using namespace vtpmd::guest;

namespace {

Bytes request(std::initializer_list<std::uint32_t> words, std::size_t more = 0) {
    WireWriter out;
    out.u8(1);
    for (const std::uint32_t w : words) {
        out.be32(w);
    }
    out.zeros(more);
    return out.take();
}

std::vector<Bytes> seeds() {
    instance::TakeRequest take;
    take.token.fill(std::byte{7});
    Bytes handover = instance::encode_take(take);
    handover.insert(handover.begin(), std::byte{0});
    return {request({1}),        request({2, 1}),           request({5}, 1),
            request({7, 3}, 3),  request({12, 1, 2, 0}),    request({13, 0, 1, 5}, 5),
            request({17, 4096}), request({18, 0, 1, 0, 0}), handover};
}

void run(ByteView input) {
    static fakes::Loop loop;
    static fakes::FakeService service;
    static EndpointState endpoint;
    if (input.empty()) {
        return;
    }
    service.on = (std::to_integer<unsigned>(input[0]) & 1U) != 0;
    endpoint.state_blobs = (std::to_integer<unsigned>(input[0]) & 2U) != 0;
    const ByteView bytes = input.subspan(1);
    if (auto take = instance::parse_take(bytes)) {
        const Bytes again = instance::encode_take(*take);
        fuzz::fuzz_check(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()),
                         "one form of each question");
    }
    std::size_t known = 0; // as GuestStream measures
    for (;;) {
        auto wanted = control_size(bytes.first(known));
        if (!wanted) {
            return;
        }
        fuzz::fuzz_check(*wanted >= known, "a request does not get shorter");
        if (*wanted > bytes.size()) {
            return;
        }
        if (*wanted == known) {
            break;
        }
        known = *wanted;
    }
    auto parsed = parse_control(bytes.first(known));
    if (!parsed) {
        fuzz::fuzz_check(parsed.error().code == Errc::unsupported, "a request that is complete parses, or is unknown");
        return;
    }
    const Bytes answer = loop.run(carry_out(std::move(*parsed), service, endpoint, {}));
    fuzz::fuzz_check(answer.size() >= 4, "every request is answered");
    const bool error = WireReader(answer).be32() != 0;
    fuzz::fuzz_check(!error || answer.size() == 4, "an error is the result alone");
}

const fuzz::Harness harness("control", seeds, run);

} // namespace

} // namespace control_fuzz
