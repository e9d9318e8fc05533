// Deep quotes, wherever bytes of them come from: a guest's vendor command (of both families), an instance's QUOTE, a manager's
// answer, a file that somebody shows; and an instance's CERTIFY, with the manager's answer to it. The first byte says which; what is
// taken says itself again in the same bytes.
#include "fuzz.hpp"
#include "instance/quotes/old_quote.hpp"
#include "proto/link/messages.hpp"
#include "quote/deep_quote.hpp"
#include "quote/old_quote.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace deep_quote_fuzz {

using namespace vtpmd;

namespace {

enum class Kind : std::uint8_t {
    guest12,
    guest20,
    request,
    reply,
    file,
    old_guest,
    old_request,
    old_answer,
    certify,
    certificate,
    count
};

Bytes seed(Kind kind, ByteView rest) {
    WireWriter w;
    return w.u8(static_cast<std::uint8_t>(kind)).bytes(rest).take();
}

proto::QuoteRequest some_request() {
    proto::QuoteRequest request;
    request.nonce = Bytes(20, std::byte{1});
    request.endorsement = Bytes(proto::quote_digest_size, std::byte{2});
    request.pcrs = Bytes(proto::quote_digest_size, std::byte{3});
    request.selections = {{.bank = 4, .pcrs = 0x11}, {.bank = 11, .pcrs = 0xFFFFFF}};
    return request;
}

proto::QuoteReply some_reply() {
    proto::QuoteReply reply;
    reply.attested = Bytes(100, std::byte{1});
    reply.signature = Bytes(262, std::byte{2});
    reply.values.push_back({.bank = 11, .index = 4, .digest = Bytes(32)});
    return reply;
}

Bytes some_file(TpmVersion hardware) {
    quote::DeepQuote deep;
    deep.hardware = hardware;
    deep.claims.endorsement = Bytes(32);
    deep.claims.nonce = Bytes(20);
    deep.pcrs = {{hwtpm::HashAlg::sha256, 0, Bytes(32)}, {hwtpm::HashAlg::sha1, 10, Bytes(20)}};
    deep.quote = {.attested = Bytes(48), .signature = Bytes(256), .values = {{hwtpm::HashAlg::sha1, 4, Bytes(20)}}};
    return quote::encode(deep).value();
}

void check_guest(const Result<instance::DeepQuoteCommand>& command) {
    if (command) {
        fuzz::fuzz_check(!command->nonce.empty() && command->nonce.size() <= proto::quote_nonce_limit,
                         "a nonce that was taken fits");
        fuzz::fuzz_check(!command->host_pcrs.empty(), "something of the hardware is quoted");
    } else {
        fuzz::fuzz_check(!command.error().message.empty(), "a refusal says why");
    }
}

void check_file(ByteView bytes) {
    auto deep = quote::decode_deep_quote(bytes);
    if (!deep) {
        fuzz::fuzz_check(!deep.error().message.empty(), "a refusal says why");
        return;
    }
    fuzz::fuzz_check(quote::encode(*deep).value() == to_bytes(bytes), "a file that was taken is written the same");
    const quote::DeepQuoteCheck check{
        .key = {}, .vtpm = {}, .group = {}, .endorsement_key = {}, .nonce = {}, .pcrs = {}, .host_pcrs = {}};
    fuzz::fuzz_check(!quote::verify_deep_quote(*deep, check), "nothing is taken without a key");
}

void check_old_guest(ByteView bytes) {
    const auto deep = instance::parse_old_deep_quote(bytes);
    const auto key = instance::parse_parent_sign_ek(bytes);
    for (const auto* command : {&deep, &key}) {
        fuzz::fuzz_check(
            !*command || ((*command)->nonce.size() == 20 &&
                          proto::check({.data = {}, .selection = (*command)->host_pcrs, .flags = (*command)->flags})),
            "what was taken can be asked of the manager");
    }
}

/// Who asks for PCR 10 with two flags is shown these bytes.
void check_old_answer(ByteView bytes) {
    quote::OldQuoteCheck check;
    WireWriter asked;
    asked.zeros(20).be16(3).u8(0).u8(4).u8(0).be16(2).u8(0x11).u8(0).be32(9);
    check.parameters = asked.take();
    check.pcrs = {{hwtpm::HashAlg::sha1, 10, Bytes(20)}};
    auto made = quote::old_hardware_quote(bytes, check);
    fuzz::fuzz_check(made.has_value() == (bytes.size() == 256 + 80), "an answer has one size");
    fuzz::fuzz_check(!quote::verify_old_quote(bytes, check), "nothing is taken without a key");
    check.parameters = to_bytes(bytes); // and the request
    check.command = bytes.size() % 2 == 0 ? quote::OldCommand::deep_quote : quote::OldCommand::parent_sign_ek;
    fuzz::fuzz_check(!quote::verify_old_quote(Bytes(256 + 80), check), "nothing is taken without a key");
}

std::vector<Bytes> seeds() {
    WireWriter guest12;
    guest12.zeros(20).be16(3).u8(0).u8(4).u8(0).be16(2).u8(0x11).u8(0).be32(instance::deep_quote_form);
    WireWriter guest20;
    guest20.be16(20).zeros(20).be32(1).be16(11).u8(3).u8(1).zeros(2);
    guest20.be32(2).be16(4).u8(3).u8(1).zeros(2).be16(11).u8(3).zeros(2).u8(1).be32(instance::deep_quote_form);
    WireWriter old_deep;
    old_deep.zeros(20).be16(3).u8(0).u8(4).u8(0).be16(2).u8(0x11).u8(0).be32(9);
    WireWriter old_key;
    old_key.zeros(20).be16(3).u8(0).u8(4).u8(0);
    const Bytes old_request =
        proto::encode_old_quote({.data = {}, .selection = {std::byte{0x11}, std::byte{0}}, .flags = 15});
    const Bytes request = proto::encode_quote(some_request());
    const Bytes reply = proto::encode_quote_reply(some_reply()).value();
    const Bytes certify =
        proto::encode_certify({.kind = proto::EkKind::ecc_p256, .key = Bytes(proto::ek_point_size), .tpm = {}});
    return {seed(Kind::guest12, guest12.view()),
            seed(Kind::guest20, guest20.view()),
            seed(Kind::request, proto::body_of(request)),
            seed(Kind::reply, reply),
            seed(Kind::certify, proto::body_of(certify)),
            seed(Kind::certificate, proto::encode_certify_reply(Bytes(700, std::byte{1})).value()),
            seed(Kind::file, some_file(TpmVersion::tpm20)),
            seed(Kind::file, some_file(TpmVersion::tpm12)),
            seed(Kind::old_guest, old_deep.view()),
            seed(Kind::old_guest, old_key.view()),
            seed(Kind::old_request, proto::body_of(old_request)),
            seed(Kind::old_answer, Bytes(256 + 80, std::byte{1})),
            seed(Kind::old_answer, old_deep.view())};
}

void run(ByteView bytes) {
    if (bytes.empty()) {
        return;
    }
    const ByteView rest = bytes.subspan(1);
    switch (static_cast<Kind>(std::to_integer<unsigned>(bytes[0]) % static_cast<unsigned>(Kind::count))) {
    case Kind::guest12:
        check_guest(instance::parse_deep_quote(rest));
        break;
    case Kind::guest20:
        check_guest(instance::parse_deep_quote_20(rest));
        break;
    case Kind::request: {
        auto request = proto::parse_quote(rest);
        if (request) {
            const Bytes again = proto::encode_quote(*request);
            fuzz::fuzz_check(std::ranges::equal(proto::body_of(again), rest),
                             "a request that was taken is sent the same");
        }
        break;
    }
    case Kind::reply: {
        auto reply = proto::parse_quote_reply(rest);
        if (reply) {
            auto again = proto::encode_quote_reply(*reply);
            fuzz::fuzz_check(!again || proto::parse_quote_reply(*again).value() == *reply,
                             "an answer that was taken is sent the same");
        }
        break;
    }
    case Kind::old_guest:
        check_old_guest(rest);
        break;
    case Kind::old_request: {
        auto request = proto::parse_old_quote(rest);
        if (request) {
            const Bytes again = proto::encode_old_quote(*request);
            fuzz::fuzz_check(std::ranges::equal(proto::body_of(again), rest),
                             "a request that was taken is sent the same");
        }
        break;
    }
    case Kind::certify: {
        auto request = proto::parse_certify(rest);
        if (request) {
            const Bytes again = proto::encode_certify(*request);
            fuzz::fuzz_check(std::ranges::equal(proto::body_of(again), rest),
                             "a request that was taken is sent the same");
        }
        break;
    }
    case Kind::old_answer:
        check_old_answer(rest);
        break;
    case Kind::certificate: {
        auto certificate = proto::parse_certify_reply(rest);
        fuzz::fuzz_check(!certificate || proto::encode_certify_reply(*certificate).value() == to_bytes(rest),
                         "an answer that was taken is sent the same");
        break;
    }
    default:
        check_file(rest);
        break;
    }
}

const fuzz::Harness harness("deep_quote", seeds, run);

} // namespace

} // namespace deep_quote_fuzz
