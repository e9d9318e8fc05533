#include "check.hpp"
#include "proto/link/messages.hpp"
#include "util/text.hpp"

#include <random>

namespace proto_messages_test {

using namespace vtpmd;
using namespace vtpmd::proto;

namespace {
const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();
Bytes key(std::size_t n) {
    Bytes b(n);
    for (std::size_t i = 0; i < n; ++i) {
        b[i] = static_cast<std::byte>(i * 3);
    }
    return b;
}
QuoteRequest quote_request() {
    return {.form = QuoteForm::digests,
            .nonce = key(3),
            .endorsement = key(quote_digest_size),
            .pcrs = Bytes(quote_digest_size, std::byte{0x77}),
            .selections = {{.bank = 4, .pcrs = 1}, {.bank = 0x0b, .pcrs = 0x800090}}};
}
QuoteReply quote_reply() {
    return {.hardware = TpmVersion::tpm12,
            .group = uuid,
            .attested = key(5),
            .signature = key(2),
            .values = {{.bank = 4, .index = 0, .digest = key(3)}, {.bank = 0x0b, .index = 23, .digest = key(1)}}};
}
std::uint32_t status_in(const Request& r) { return parse_header(std::get<BadRequest>(r).answer)->code; }

/// Cuts `frame` to n bytes and makes its size field true, so that only the message layer can refuse it.
Bytes cut(const Bytes& frame, std::size_t n) {
    auto h = parse_header(frame);
    return make_frame(h->tag, h->code, body_of(frame).first(n - header_size));
}
} // namespace

TEST_SUITE("proto") {
    TEST_CASE("golden bytes: hello") {
        CHECK(to_hex(encode_hello({uuid, TpmVersion::tpm12, true})) == "01c10000002156500001"
                                                                       "0001"
                                                                       "00112233445566778899aabbccddeeff"
                                                                       "01"
                                                                       "00000001");
        CHECK(to_hex(encode_hello_reply({true, true, false, TpmVersion::tpm20})) == "01c40000001100000000"
                                                                                    "0001"
                                                                                    "00000003"
                                                                                    "02");
        CHECK(to_hex(encode_load()) == "01c10000000a00000002");
        CHECK(to_hex(encode_error(Error{Errc::tombstone, "x"})) == "01c40000000a00000401");
    }

    TEST_CASE("requests: round trip") {
        auto hello = std::get<HelloRequest>(parse_request(encode_hello({uuid, TpmVersion::tpm20, false})));
        CHECK(hello.uuid == uuid);
        CHECK(hello.version == TpmVersion::tpm20);
        CHECK_FALSE(hello.create);
        for (std::size_t n : {hash_key_short, hash_key_long}) {
            auto save = std::get<SaveRequest>(parse_request(encode_save(key(n))));
            CHECK(save.hash_key.equals(key(n)));
            CHECK_FALSE(save.over);
            for (std::size_t over : {0U, 20U, 32U}) {
                auto named = std::get<SaveRequest>(parse_request(encode_save_over(key(over), key(n))));
                CHECK(named.hash_key.equals(key(n)));
                CHECK(named.over == key(over));
            }
            for (std::size_t odd : {1U, 19U, 21U, 33U}) {
                CHECK(std::holds_alternative<BadRequest>(parse_request(encode_save_over(key(odd), key(n)))));
            }
        }
        CHECK(std::holds_alternative<LoadRequest>(parse_request(encode_load())));
        CHECK(std::holds_alternative<BootHashRequest>(parse_request(encode_get_boot_hash())));
        CHECK(std::holds_alternative<HandedOverRequest>(parse_request(encode_handed_over())));
        CHECK(std::get<QuoteRequest>(parse_request(encode_quote(quote_request()))) == quote_request());
    }

    TEST_CASE("answers: round trip") {
        for (bool record : {false, true}) {
            for (bool may : {false, true}) {
                auto r = parse_hello_reply(encode_hello_reply({true, record, may, TpmVersion::tpm12}));
                REQUIRE(r);
                CHECK(r->known);
                CHECK(r->has_record == record);
                CHECK(r->may_create == may);
                CHECK(r->version == TpmVersion::tpm12);
            }
        }
        CHECK_FALSE(parse_hello_reply(encode_hello_reply({}))->known);
        CHECK(parse_hello_reply(encode_hello_reply({.known = true, .was_reset = true}))->was_reset);
        CHECK_FALSE(parse_hello_reply(encode_hello_reply({.known = true}))->was_reset);
        CHECK_FALSE(parse_hello_reply(encode_hello_reply({.was_reset = true}))); // of a vTPM that it does not know
        for (std::size_t n : {20U, 32U}) {
            const ResetInfo info{.sequence = 5, .when = 6, .given_up = Bytes(n, std::byte{7})};
            CHECK(parse_reset_info_reply(encode_reset_info_reply(info)).value() == info);
        }
        CHECK(parse_save_reply(encode_success()));
        CHECK((*parse_load_reply(encode_success(key(64))))->equals(key(64)));
        CHECK_FALSE(parse_load_reply(encode_error(Error{Errc::not_found, ""}))->has_value());
        CHECK(parse_load_reply(encode_error(Error{Errc::io, ""})).error().code == Errc::io);
        CHECK(parse_boot_hash_reply(encode_success(key(20))));
    }

    TEST_CASE("a refused hello carries its text, made fit for the log") {
        auto r = parse_hello_reply(encode_hello_error(Error{Errc::mismatch, "registered as\nTPM 1.2"}));
        CHECK(r.error().code == Errc::mismatch);
        CHECK(r.error().message == "the manager says: registered as\\x0aTPM 1.2");
        const std::string longer(5000, 'x');
        CHECK(encode_hello_error(Error{Errc::mismatch, longer}).size() == header_size + error_text_limit);
    }

    TEST_CASE("requests: truncated at every length, and a trailing byte") {
        const std::vector<Bytes> all = {encode_hello({uuid, TpmVersion::tpm20, true}),
                                        encode_save(key(52)),
                                        encode_save_over(key(20), key(52)),
                                        encode_save(key(64)),
                                        encode_load(),
                                        encode_get_boot_hash(),
                                        encode_handed_over(),
                                        encode_reset_info(),
                                        encode_quote(quote_request())};
        for (const Bytes& whole : all) {
            for (std::size_t n = header_size; n < whole.size(); ++n) {
                if (n == header_size + 52) {
                    continue; // a long hash key cut to a short one is a valid request
                }
                CHECK(status_in(parse_request(cut(whole, n))) == 0x19);
            }
            for (std::size_t n = 0; n < whole.size(); ++n) {
                CHECK(status_in(parse_request(ByteView(whole).first(n))) == 0x19);
            }
            auto h = parse_header(whole);
            Bytes body = to_bytes(body_of(whole));
            body.push_back(std::byte{0});
            CHECK(status_in(parse_request(make_frame(h->tag, h->code, body))) == 0x19);
        }
    }

    TEST_CASE("answers: truncated at every length, and a trailing byte") {
        const Bytes hello = encode_hello_reply({true, true, true, TpmVersion::tpm20});
        for (std::size_t n = 0; n < hello.size(); ++n) {
            CHECK(parse_hello_reply(ByteView(hello).first(n)).error().code == Errc::protocol);
            if (n >= header_size) {
                CHECK(parse_hello_reply(cut(hello, n)).error().code == Errc::protocol);
            }
        }
        const ResetInfo info{.sequence = 5, .when = 6, .given_up = Bytes(32, std::byte{7})};
        const Bytes reset = encode_reset_info_reply(info);
        CHECK(to_hex(reset) == "01c40000003b00000000"
                               "00000000000000050000000000000006"
                               "20"
                               "0707070707070707070707070707070707070707070707070707070707070707");
        for (std::size_t n = header_size; n < reset.size(); ++n) {
            CHECK(parse_reset_info_reply(cut(reset, n)).error().code == Errc::protocol);
        }
        Bytes longer = to_bytes(body_of(reset));
        longer.push_back(std::byte{0});
        CHECK(parse_reset_info_reply(encode_success(longer)).error().code == Errc::protocol);
        CHECK(parse_reset_info_reply(encode_reset_info_reply({.sequence = 0, .given_up = Bytes(32)})).has_error());
        CHECK(parse_reset_info_reply(encode_reset_info_reply({.sequence = 1, .given_up = Bytes(31)})).has_error());
        for (std::size_t n = 0; n < 100; ++n) {
            const Bytes answer = encode_success(key(n));
            CHECK(parse_save_reply(answer).has_value() == (n == 0));
            CHECK(parse_load_reply(answer).has_value() == (n == 52 || n == 64));
            CHECK(parse_boot_hash_reply(answer).has_value() == (n == 20));
            CHECK(parse_hello_reply(answer).has_value() == false);
        }
    }

    TEST_CASE("hello: values that make no sense") {
        Bytes body = to_bytes(body_of(encode_hello({uuid, TpmVersion::tpm20, true})));
        auto with = [&](std::size_t at, unsigned value) {
            Bytes b = body;
            b[at] = static_cast<std::byte>(value);
            return status_in(parse_request(make_frame(tag::request, ordinal::hello, b)));
        };
        CHECK(with(1, 2) == 0x409); // protocol version
        CHECK(with(18, 0) == 3);    // TPM version
        CHECK(with(18, 3) == 3);
        CHECK(with(22, 4) == 3); // an unknown flag
        CHECK(status_in(parse_request(encode_hello({Uuid{}, TpmVersion::tpm20, true}))) == 3);
    }

    TEST_CASE("golden bytes: quote") {
        CHECK(to_hex(encode_quote(quote_request())) ==
              "01c10000006056500003"
              "01"
              "03000306"
              "0020000306090c0f1215181b1e2124272a2d303336393c3f4245484b4e5154575a5d"
              "00207777777777777777777777777777777777777777777777777777777777777777"
              "02"
              "000400000001"
              "000b00800090");
        CHECK(to_hex(*encode_quote_reply(quote_reply())) == "01c40000003300000000"
                                                            "01"
                                                            "00112233445566778899aabbccddeeff"
                                                            "0005000306090c"
                                                            "00020003"
                                                            "02"
                                                            "00040003000306"
                                                            "000b170100");
    }

    TEST_CASE("quote: what makes no sense is a bad parameter, and never sent") {
        const auto refused = [](auto&& change) {
            QuoteRequest r = quote_request();
            change(r);
            CHECK(check(r).error().code == Errc::usage);
            CHECK(status_in(parse_request(encode_quote(r))) == 3);
        };
        CHECK(check(quote_request()));
        QuoteRequest best = quote_request();
        best.selections = {{.bank = 0, .pcrs = 1}};
        CHECK(check(best));
        refused([](QuoteRequest& r) { r.selections[0].bank = 0; }); // not alone
        refused([](QuoteRequest& r) { r.form = static_cast<QuoteForm>(0); });
        refused([](QuoteRequest& r) { r.form = static_cast<QuoteForm>(2); });
        refused([](QuoteRequest& r) { r.nonce.clear(); });
        refused([](QuoteRequest& r) { r.nonce.resize(quote_nonce_limit + 1); });
        refused([](QuoteRequest& r) { r.endorsement.pop_back(); });
        refused([](QuoteRequest& r) { r.pcrs.push_back(std::byte{0}); });
        refused([](QuoteRequest& r) { r.selections.clear(); });
        refused([](QuoteRequest& r) { r.selections.resize(quote_selection_limit + 1, {.bank = 0x0d, .pcrs = 1}); });
        refused([](QuoteRequest& r) { std::swap(r.selections[0], r.selections[1]); });
        refused([](QuoteRequest& r) { r.selections[1].bank = r.selections[0].bank; });
        refused([](QuoteRequest& r) { r.selections[0].pcrs = 0; });
        refused([](QuoteRequest& r) { r.selections[0].pcrs = 0x01000000; });
    }

    TEST_CASE("quote's answer: round trip, cut at every length, a trailing byte, an unknown family, more than a ring "
              "carries") {
        const Bytes whole = encode_quote_reply(quote_reply()).value();
        CHECK(parse_quote_reply(whole).value() == quote_reply());
        for (std::size_t n = 0; n < whole.size(); ++n) {
            CHECK(parse_quote_reply(ByteView(whole).first(n)).error().code == Errc::protocol);
            if (n >= header_size) {
                CHECK(parse_quote_reply(cut(whole, n)).error().code == Errc::protocol);
            }
        }
        Bytes body = to_bytes(body_of(whole));
        body.push_back(std::byte{0});
        CHECK(parse_quote_reply(encode_success(body)).error().code == Errc::protocol);
        body.pop_back();
        for (unsigned family : {0U, 3U}) {
            body[0] = static_cast<std::byte>(family);
            CHECK(parse_quote_reply(encode_success(body)).error().code == Errc::protocol);
        }
        CHECK(parse_quote_reply(encode_error(Error{Errc::pcr_mismatch, ""})).error().code == Errc::pcr_mismatch);

        QuoteReply large = quote_reply();
        large.values.assign(96, {.bank = 0x0d, .index = 1, .digest = key(64)});
        CHECK(encode_quote_reply(large).error().code == Errc::too_large);
        large.values.resize(56);
        CHECK(encode_quote_reply(large)->size() <= 4088);
    }

    TEST_CASE("certify: golden bytes, round trip, cut at every length, a trailing byte, an unknown kind, no modulus") {
        CertifyRequest rsa{.kind = EkKind::rsa_2048,
                           .key = Bytes(ek_modulus_size, std::byte{0xa5}),
                           .tpm = {.manufacturer = 0x49424D00, .firmware = 1, .level = 2, .revision = 116}};
        CertifyRequest ecc{.kind = EkKind::ecc_p256, .key = key(ek_point_size), .tpm = rsa.tpm};
        CHECK(to_hex(encode_certify(ecc)) ==
              "01c10000005b5650000402" + to_hex(key(ek_point_size)) + "49424d00000000010000000200000074");
        for (const CertifyRequest& request : {rsa, ecc}) {
            const Bytes whole = encode_certify(request);
            CHECK(std::get<CertifyRequest>(parse_request(whole)) == request);
            for (std::size_t n = header_size; n < whole.size(); ++n) {
                CHECK(status_in(parse_request(cut(whole, n))) == 0x19);
            }
            Bytes body = to_bytes(body_of(whole));
            body.push_back(std::byte{0});
            CHECK(status_in(parse_request(make_frame(tag::request, ordinal::certify, body))) == 0x19);
            for (unsigned kind : {0U, 3U, 255U}) {
                body[0] = static_cast<std::byte>(kind);
                CHECK(status_in(parse_request(make_frame(tag::request, ordinal::certify, body))) == 0x03);
            }
        }
        rsa.key.back() = std::byte{2};
        CHECK(status_in(parse_request(encode_certify(rsa))) == 0x03);
        rsa.key.back() = std::byte{1};
        rsa.key.front() = std::byte{0x7f};
        CHECK(status_in(parse_request(encode_certify(rsa))) == 0x03);
        // Too large for its kind.
        CHECK(status_in(parse_request(make_frame(tag::request, ordinal::certify, key(4000)))) != 0);
    }

    TEST_CASE("certify's answer: a certificate of some size") {
        for (const std::size_t n : {std::size_t{1}, std::size_t{700}, ek_certificate_limit}) {
            CHECK(parse_certify_reply(encode_certify_reply(key(n)).value()).value() == key(n));
        }
        for (const std::size_t n : {std::size_t{0}, ek_certificate_limit + 1}) {
            CHECK(encode_certify_reply(key(n)).error().code == Errc::too_large);
            CHECK(parse_certify_reply(encode_success(key(n))).error().code == Errc::protocol);
        }
        CHECK(parse_certify_reply(key(9)).error().code == Errc::protocol);
        // As a manager from before answers.
        const Bytes unknown = std::get<BadRequest>(parse_request(make_frame(tag::request, 0x56500099))).answer;
        CHECK(parse_certify_reply(unknown).error().code == Errc::unsupported);
    }

    TEST_CASE("only harmless TPM commands are passed on") {
        auto passed = [](std::uint16_t t, std::uint32_t code) {
            return std::holds_alternative<TpmCommand>(parse_request(make_frame(t, code, key(4))));
        };
        CHECK(passed(tag::tpm12_command, 0x46));
        CHECK(passed(tag::tpm12_command, 0x15));
        CHECK(passed(tag::tpm12_command, 0x14));       // Extend: whether the peer may is the manager's to say
        CHECK_FALSE(passed(tag::tpm12_command, 0x17)); // Seal
        CHECK(passed(tag::tpm20_command, 0x17B));
        CHECK(passed(tag::tpm20_command, 0x17E));
        CHECK_FALSE(passed(tag::tpm20_command, 0x182)); // PCR_Extend
        CHECK_FALSE(passed(tag::tpm12_command, 0x17B));
        CHECK(to_hex(std::get<BadRequest>(parse_request(make_frame(tag::tpm12_command, 0x17))).answer) ==
              "00c40000000a0000000a");
        CHECK(to_hex(std::get<BadRequest>(parse_request(make_frame(tag::tpm20_command, 0x182))).answer) ==
              "80010000000a00000143");
    }

    TEST_CASE("unknown tags and ordinals get an answer") {
        CHECK(status_in(parse_request(make_frame(0x1234, 1))) == 0x1E);
        CHECK(status_in(parse_request(make_frame(tag::request, 99))) == 0x0A);
        // Not looked at: who may not manage learns nothing of it.
        CHECK(std::holds_alternative<ManagementRequest>(parse_request(make_frame(tag::management, 0x02000101))));
        CHECK(std::holds_alternative<ManagementRequest>(parse_request(make_frame(tag::management, 99, key(3)))));
        CHECK(status_in(parse_request(make_frame(tag::response, 1))) == 0x1E);
    }

    TEST_CASE("status codes survive the way there and back") {
        for (Errc code :
             {Errc::usage, Errc::not_found, Errc::exists, Errc::busy, Errc::permission, Errc::io, Errc::no_space,
              Errc::version, Errc::corrupt, Errc::rollback, Errc::mismatch, Errc::pcr_mismatch, Errc::tombstone,
              Errc::protocol, Errc::unavailable, Errc::tpm, Errc::unsupported}) {
            const auto status = static_cast<std::uint32_t>(status_of(code));
            CHECK(status != 0);
            CHECK(errc_of(status) == code);
            CHECK(status_error(status).detail == status);
        }
        const Error deleted = status_error(0x40B);
        CHECK(deleted.code == Errc::tombstone);
        CHECK(status_of(deleted) == Status::vendor_deleted);
        CHECK(status_of(status_error(0x401)) == Status::vendor_tombstone);
        CHECK(status_of(status_error(0x402)) == Status::vendor_busy);
        for (std::uint32_t s = 1; s < 0x800; ++s) {
            CHECK_FALSE(status_error(s).message.empty());
        }
    }

    TEST_CASE("frames: sizes") {
        CHECK_FALSE(parse_header(key(9)));
        CHECK(parse_header(make_frame(tag::request, 1, key(frame_limit - header_size))));
        Bytes f = make_frame(tag::request, 1);
        f[5] = std::byte{9};
        CHECK_FALSE(parse_header(f));
        f[4] = std::byte{0x10};
        f[5] = std::byte{1}; // 4097
        CHECK_FALSE(parse_header(f));
    }

    TEST_CASE("10,000 random frames are answered or taken, none crashes") {
        std::mt19937 random(1);
        const std::uint16_t tags[] = {tag::request,       tag::management,    tag::response,
                                      tag::tpm12_command, tag::tpm20_command, 0};
        const std::uint32_t codes[] = {1,    2,    3,     4,     ordinal::hello,   ordinal::quote,
                                       0x46, 0x15, 0x17B, 0x17E, ordinal::certify, 0xFFFFFFFF};
        for (int i = 0; i < 10000; ++i) {
            Bytes body(random() % 80);
            for (auto& b : body) {
                b = static_cast<std::byte>(random());
            }
            Bytes frame = make_frame(tags[random() % 6], codes[random() % 12], body);
            if (random() % 4 == 0) {
                frame[random() % frame.size()] = static_cast<std::byte>(random());
            }
            if (random() % 4 == 0) {
                frame.resize(random() % (frame.size() + 1));
            }
            Request r = parse_request(frame);
            if (auto* bad = std::get_if<BadRequest>(&r)) {
                CHECK(parse_frame(bad->answer));
                CHECK_FALSE(bad->reason.empty());
            }
            (void)parse_hello_reply(frame);
            (void)parse_load_reply(frame);
            (void)parse_quote_reply(frame);
            (void)parse_certify_reply(frame);
        }
    }

    TEST_CASE("GET_QUOTE: golden bytes, cut at every length, a trailing byte, selections, flags, the answer's size") {
        OldQuoteRequest request{.data = {}, .selection = {std::byte{0x11}, std::byte{0x80}}, .flags = 9};
        request.data.fill(std::byte{0xd1});
        const Bytes frame = encode_old_quote(request);
        CHECK(to_hex(frame) == "01c10000002600000004"
                               "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1"
                               "00021180"
                               "00000009");
        CHECK(std::get<OldQuoteRequest>(parse_request(frame)) == request);
        for (std::size_t n = header_size; n < frame.size(); ++n) {
            CHECK(status_in(parse_request(cut(frame, n))) == static_cast<std::uint32_t>(Status::bad_param_size));
        }
        Bytes longer = to_bytes(body_of(frame));
        longer.push_back({});
        CHECK(parse_old_quote(longer).error().code == Errc::protocol);
        for (const auto& [selection, flags] : {std::pair(Bytes{}, 0U), {Bytes(4), 0U}, {Bytes(3), 16U}}) {
            const OldQuoteRequest bad{.data = {}, .selection = selection, .flags = flags};
            CHECK(check(bad).error().code == Errc::usage);
            CHECK(parse_old_quote(body_of(encode_old_quote(bad))).error().code == Errc::usage);
        }
        CHECK(old_quote_reply_size(request) == 256 + 2 * 20 + 3 * 20);
        const Bytes answer(256 + 100, std::byte{0x51});
        CHECK(parse_old_quote_reply(encode_success(answer), request).value() == answer);
        CHECK(parse_old_quote_reply(encode_success(ByteView(answer).first(355)), request).error().code ==
              Errc::protocol);
        CHECK(parse_old_quote_reply(encode_error(Error{Errc::unsupported, "x"}), request).error().code ==
              Errc::unsupported);
    }
}

} // namespace proto_messages_test
