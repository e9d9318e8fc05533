#include "proto/vtpm_managerd/messages.hpp"

#include "check.hpp"
#include "util/text.hpp"

namespace proto_legacy_test {

using namespace vtpmd;
using namespace vtpmd::proto::legacy;

namespace {

const Open open_7{.migratable = true, .start = Start::resume, .hvm = true, .instance = 7};

Status refused(ByteView request) {
    const Request parsed = parse(request);
    REQUIRE(std::holds_alternative<Refused>(parsed));
    CHECK_FALSE(std::get<Refused>(parsed).why.empty());
    return std::get<Refused>(parsed).status;
}
Bytes with(Bytes request, std::size_t at, unsigned value) {
    request.at(at) = static_cast<std::byte>(value);
    return request;
}

} // namespace

TEST_SUITE("proto") {
    TEST_CASE("legacy: golden bytes, and there and back") {
        CHECK(to_hex(encode(open_7)) == "00000000"
                                        "01c10000001101000001"
                                        "01"
                                        "02"
                                        "02"
                                        "00000007");
        CHECK(to_hex(encode(Close{.instance = 0x01020304})) == "0000000001c10000000e0100000201020304");
        CHECK(to_hex(encode(Delete{.instance = 1})) == "0000000001c10000000e0100000300000001");
        CHECK(to_hex(encode_answer(Status::restore_failed)) == "0000000001c40000000a00000004");
        CHECK(std::get<Open>(parse(encode(open_7))) == open_7);
        for (Start start : {Start::clear, Start::resume, Start::deactivated}) {
            const Open open{.migratable = false, .start = start, .hvm = false, .instance = 0xFFFFFFFF};
            CHECK(std::get<Open>(parse(encode(open))) == open);
        }
        CHECK(std::get<Close>(parse(encode(Close{.instance = 9}))) == Close{.instance = 9});
        CHECK(std::get<Delete>(parse(encode(Delete{.instance = 9}))) == Delete{.instance = 9});
    }

    TEST_CASE("legacy: cut at every length, a trailing byte, values that there are not") {
        for (const Bytes& whole : {encode(open_7), encode(Close{.instance = 7}), encode(Delete{.instance = 7})}) {
            CHECK(request_size(ByteView(whole).first(header_size)).value() == whole.size());
            for (std::size_t n = 0; n < whole.size(); ++n) {
                CHECK(refused(ByteView(whole).first(n)) == Status::invalid);
                Bytes shorter(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
                if (n >= header_size) { // with a size that is true
                    shorter[9] = static_cast<std::byte>(n - prefix_size);
                    CHECK(refused(shorter) == Status::invalid);
                }
            }
            Bytes longer = whole;
            longer.push_back({});
            CHECK(refused(longer) == Status::invalid);
            longer[9] = static_cast<std::byte>(longer.size() - prefix_size);
            CHECK(refused(longer) == Status::invalid);
            CHECK(refused(with(whole, whole.size() - 1, 0)) == Status::invalid); // instance 0
            CHECK(refused(with(whole, 5, 0xC2)) == Status::invalid);             // tag
            CHECK(refused(with(whole, 3, 7)) == Status::forbidden);              // another's channel
            for (unsigned ordinal : {4U, 5U, 6U, 0U, 255U}) {                    // MIGRATE_IN, MIGRATE_OUT, none
                CHECK(refused(with(whole, 13, ordinal)) == Status::unsupported);
            }
            CHECK(refused(with(whole, 10, 0)) == Status::unsupported); // SAVENVM, LOADNVM, TPMCOMMAND
        }
        const Bytes whole = encode(open_7);
        CHECK(refused(with(whole, 14, 2)) == Status::invalid);
        CHECK(refused(with(whole, 15, 0)) == Status::invalid);
        CHECK(refused(with(whole, 15, 4)) == Status::invalid);
        CHECK(refused(with(whole, 16, 0)) == Status::invalid);
        CHECK(refused(with(whole, 16, 3)) == Status::invalid);
    }

    TEST_CASE("legacy: a size that cannot be") {
        Bytes header = encode(Close{.instance = 7});
        header.resize(header_size);
        for (unsigned size : {0U, 9U, 61U, 255U}) {
            CHECK(request_size(with(header, 9, size)).error().code == Errc::protocol);
        }
        CHECK(request_size(with(header, 9, 10)).value() == header_size);
        CHECK(request_size(with(header, 9, 60)).value() == request_limit);
        CHECK(request_size(with(header, 6, 0x80)).error().code == Errc::protocol);
        CHECK(request_size(ByteView(header).first(9)).error().code == Errc::protocol);
    }
}

} // namespace proto_legacy_test
