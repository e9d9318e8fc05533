#include "proto/link/ask_messages.hpp"

#include "proto/link/messages.hpp"
#include "util/text.hpp"

#include <doctest/doctest.h>
#include <functional>

namespace proto_ask_messages_test {

using namespace vtpmd;
using namespace vtpmd::proto;

namespace {

const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();

AskQuote question() {
    AskQuote q;
    q.nonce = Bytes(3, std::byte{0x4e});
    q.pcrs = {{.bank = 4, .pcrs = 0x400}, {.bank = 0x0b, .pcrs = 1}};
    q.host_pcrs = {{.bank = 0x0b, .pcrs = 0x11}};
    return q;
}
Report report() {
    Report r{
        .incarnation = 0x0102030405060708, .continued = true, .commits = 5, .commit_failures = 1, .latency_ns = 99};
    r.latency = {1, 2, 3, 4, 5, 6, 7};
    r.commands = {{.code = 0, .totals = {.refused = 2}},
                  {.code = 0x17b, .totals = {.success = 1, .tpm_error = 2, .refused = 3, .not_durable = 4}}};
    return r;
}
/// Every length but the right one is refused.
void check_cuts(ByteView body, const std::function<bool(ByteView)>& taken) {
    for (std::size_t n = 0; n < body.size(); ++n) {
        CAPTURE(n);
        CHECK_FALSE(taken(body.first(n)));
    }
    Bytes longer = to_bytes(body);
    longer.push_back(std::byte{0});
    CHECK_FALSE(taken(longer));
    CHECK(taken(body));
}

} // namespace

TEST_SUITE("proto") {
    TEST_CASE("INVITE and ATTACH: golden bytes, round trip, cut at every length, a trailing byte, another version") {
        CHECK(to_hex(encode_invite()) == "01c10000000a56500005");
        CHECK(std::holds_alternative<InviteRequest>(parse_request(encode_invite())));
        const Bytes key(attach_key_size, std::byte{0x77});
        CHECK(parse_invite_reply(encode_invite_reply(key)).value().equals(key));
        CHECK(parse_invite_reply(encode_success(Bytes(31))).error().code == Errc::protocol);
        CHECK(parse_invite_reply(encode_error(Error{Errc::unsupported, ""})).error().code == Errc::unsupported);

        const Bytes frame = encode_attach({.uuid = uuid, .key = SecretBytes(key)});
        CHECK(to_hex(ByteView(frame).first(header_size + 18)) == "01c10000003c56500006"
                                                                 "000100112233445566778899aabbccddeeff");
        auto parsed = parse_request(frame);
        REQUIRE(std::holds_alternative<AttachRequest>(parsed));
        CHECK(std::get<AttachRequest>(parsed).uuid == uuid);
        CHECK(std::get<AttachRequest>(parsed).key.equals(key));
        check_cuts(body_of(frame), [](ByteView b) { return parse_attach(b).has_value(); });
        Bytes newer = to_bytes(body_of(frame));
        newer[1] = std::byte{2};
        CHECK(parse_attach(newer).error().code == Errc::version);
        CHECK(std::holds_alternative<BadRequest>(parse_request(make_frame(tag::request, ordinal::invite, Bytes(1)))));
        // What comes on the other connection only.
        CHECK(std::holds_alternative<BadRequest>(parse_request(encode_ask_quote(question()))));
        CHECK(std::holds_alternative<BadRequest>(parse_request(encode_report(report()))));
    }

    TEST_CASE("ASK_QUOTE: golden bytes, round trip, cut at every length, a trailing byte; nonces, banks and PCRs") {
        const Bytes frame = encode_ask_quote(question());
        CHECK(to_hex(frame) == "01c10000002256500007"
                               "034e4e4e"
                               "02000400000400000b00000001"
                               "01000b00000011");
        CHECK(parse_ask_quote(body_of(frame)).value() == question());
        check_cuts(body_of(frame), [](ByteView b) { return parse_ask_quote(b).has_value(); });
        const auto code = [](const std::function<void(AskQuote&)>& change) {
            AskQuote q = question();
            change(q);
            const Bytes changed = encode_ask_quote(q);
            auto parsed = parse_ask_quote(body_of(changed));
            return parsed ? std::optional<Errc>() : std::optional(parsed.error().code);
        };
        CHECK(code([](AskQuote& q) { q.nonce.clear(); }) == Errc::usage);
        CHECK(code([](AskQuote& q) { q.nonce.resize(65); }) == Errc::usage);
        CHECK_FALSE(code([](AskQuote& q) { q.nonce.resize(64); }));
        CHECK_FALSE(code([](AskQuote& q) { q.pcrs.clear(); }));
        CHECK(code([](AskQuote& q) { q.host_pcrs.clear(); }) == Errc::usage);
        CHECK(code([](AskQuote& q) { q.pcrs[1].bank = 4; }) == Errc::usage);
        CHECK(code([](AskQuote& q) { q.pcrs[0].pcrs = 0; }) == Errc::usage);
        CHECK(code([](AskQuote& q) { q.host_pcrs[0].pcrs = 1U << 24U; }) == Errc::usage);
        CHECK(code([](AskQuote& q) { q.pcrs = {{.bank = 0, .pcrs = 1}}; }) == Errc::usage);
        CHECK_FALSE(code([](AskQuote& q) { q.host_pcrs = {{.bank = 0, .pcrs = 1}}; })); // the hardware's best
        CHECK(code([](AskQuote& q) {
                  for (std::uint16_t b = 1; b <= 5; ++b) {
                      q.host_pcrs.push_back({.bank = static_cast<std::uint16_t>(0x0b + b), .pcrs = 1});
                  }
              }) == Errc::usage);
    }

    TEST_CASE("answers: the body, the other end's error with its text, nothing that a terminal would obey") {
        CHECK(parse_answer(encode_answer(Bytes(4000)).value()).value() == Bytes(4000));
        CHECK(encode_answer(Bytes(4087)).error().code == Errc::too_large);
        const auto refused = parse_answer(encode_answer_error(Error{Errc::unavailable, "off\x1b[2J"}));
        CHECK(refused.error().code == Errc::unavailable);
        CHECK(refused.error().message.find("off") != std::string::npos);
        CHECK(refused.error().message.find('\x1b') == std::string::npos);
        CHECK(parse_answer(encode_invite()).error().code == Errc::protocol);
        CHECK(parse_answer(Bytes(3)).error().code == Errc::protocol);
    }

    TEST_CASE("REPORT: round trip, cut at every length, a trailing byte, order, number and flags") {
        const Bytes frame = encode_report(report());
        CHECK(parse_report(body_of(frame)).value() == report());
        CHECK(to_hex(ByteView(frame).first(header_size + 17)) == "01c1000000ac56500008"
                                                                 "0102030405060708"
                                                                 "01"
                                                                 "0000000000000005");
        check_cuts(body_of(frame), [](ByteView b) { return parse_report(b).has_value(); });
        Report full = report();
        full.commands.clear();
        for (std::uint32_t i = 0; i < report_command_limit; ++i) {
            full.commands.push_back({.code = i, .totals = {}});
        }
        const Bytes most = encode_report(full);
        CHECK(most.size() <= frame_limit);
        CHECK(parse_report(body_of(most)).value() == full);
        full.commands.push_back({.code = 1000, .totals = {}});
        const Bytes more = encode_report(full);
        CHECK(parse_report(body_of(more)).error().code == Errc::protocol);
        Report twice = report();
        twice.commands[1].code = 0;
        const Bytes same = encode_report(twice);
        CHECK(parse_report(body_of(same)).error().code == Errc::protocol);
        Bytes flags = to_bytes(body_of(frame));
        flags[8] = std::byte{4};
        CHECK(parse_report(flags).error().code == Errc::protocol);
    }
}

} // namespace proto_ask_messages_test
