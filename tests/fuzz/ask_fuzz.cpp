// What an instance and its manager say on the connection for questions: any bytes. What is taken says itself again in the same bytes.
#include "fuzz.hpp"
#include "proto/link/messages.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace ask_fuzz {

using namespace vtpmd;
using namespace vtpmd::proto;

namespace {

enum class Kind : std::uint8_t { attach, question, report, answer, count };

Bytes seed(Kind kind, ByteView rest) {
    WireWriter w;
    return w.u8(static_cast<std::uint8_t>(kind)).bytes(rest).take();
}

template <typename T>
bool told(const Result<T>& taken) {
    if (!taken) {
        fuzz::fuzz_check(!taken.error().message.empty(), "a refusal says why");
    }
    return taken.has_value();
}

std::vector<Bytes> seeds() {
    const Bytes attach = encode_attach({.uuid = Uuid{{std::byte{1}}}, .key = SecretBytes(attach_key_size)});
    AskQuote q;
    q.nonce = Bytes(20);
    q.pcrs = {{.bank = 4, .pcrs = 1}, {.bank = 11, .pcrs = 3}};
    q.host_pcrs = {{.bank = 0, .pcrs = 1}};
    const Bytes question = encode_ask_quote(q);
    Report r{.incarnation = 1, .commits = 2};
    r.commands = {{.code = 0, .totals = {}}, {.code = 5, .totals = {.success = 7}}};
    const Bytes report = encode_report(r);
    return {seed(Kind::attach, body_of(attach)), seed(Kind::question, body_of(question)),
            seed(Kind::report, body_of(report)), seed(Kind::answer, encode_answer(Bytes(9)).value()),
            seed(Kind::answer, encode_answer_error(Error{Errc::busy, "no"}))};
}

void run(ByteView bytes) {
    if (bytes.empty()) {
        return;
    }
    const ByteView rest = bytes.subspan(1);
    switch (static_cast<Kind>(std::to_integer<unsigned>(bytes[0]) % static_cast<unsigned>(Kind::count))) {
    case Kind::attach:
        if (auto taken = parse_attach(rest); told(taken)) {
            const Bytes again = encode_attach(*taken);
            fuzz::fuzz_check(std::ranges::equal(body_of(again), rest), "an ATTACH that was taken is sent the same");
        }
        break;
    case Kind::question:
        if (auto taken = parse_ask_quote(rest); told(taken)) {
            const Bytes again = encode_ask_quote(*taken);
            fuzz::fuzz_check(std::ranges::equal(body_of(again), rest), "a question that was taken is sent the same");
        }
        break;
    case Kind::report:
        if (auto taken = parse_report(rest); told(taken)) {
            const Bytes again = encode_report(*taken);
            fuzz::fuzz_check(std::ranges::equal(body_of(again), rest), "a report that was taken is sent the same");
        }
        break;
    default:
        (void)told(parse_answer(rest));
    }
}

const fuzz::Harness harness("ask", seeds, run);

} // namespace

} // namespace ask_fuzz
