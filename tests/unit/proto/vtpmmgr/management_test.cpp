// The old protocol's management messages: the very bytes that Xen's manage-vtpmmgr.pl sends, sizes, and values that make no sense.
#include "proto/vtpmmgr/management.hpp"

#include "util/text.hpp"
#include "util/wire.hpp"

#include <doctest/doctest.h>

namespace proto_management_test {

using namespace vtpmd;
// Not all of proto: there is another Request in it, and other ordinals.
using namespace vtpmd::proto::management;
using proto::body_of;
using proto::header_size;
using proto::make_frame;
using proto::parse_header;
namespace tag = proto::tag;

namespace {

const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();

Hash hash(std::uint8_t mark) {
    Hash h;
    h.fill(static_cast<std::byte>(mark));
    return h;
}
Number number(std::uint8_t mark) {
    Number n;
    n.fill(static_cast<std::byte>(mark));
    return n;
}
Bytes tpm_key() {
    WireWriter w; // version, usage, flags, authDataUsage, RSA, schemes, parameters, PCR info, modulus, private part
    w.be32(0x01010000).be16(0x12).be32(0).u8(1).be32(1).be16(1).be16(2).be32(12).zeros(12).be32(0);
    w.be32(256).bytes(number(0x6D)).be32(3).zeros(3);
    return w.take();
}
ConfigList list() { return {.sequence = 7, .platforms = {hash(1), hash(2)}, .labels = {hash(3)}}; }

std::vector<Request> all() {
    return {GroupList{},
            GroupNew{hash(9), number(1)},
            GroupDel{2},
            GroupActivate{1, Bytes(5, std::byte{0x55})},
            GroupRegister{1, number(2), number(3), 0x0E00FF},
            GroupUpdate{1, number(4), list(), {0x0E00FF, 0x10}},
            GroupShow{1},
            GroupQuote{1, hash(4), 0x11},
            GroupRecover1{1, tpm_key(), hash(5), 0x11},
            GroupRecover2{1, number(6), Blob{}},
            VtpmList{1, 100},
            VtpmShow{uuid},
            VtpmEdit{uuid, 1},
            VtpmNew{1, std::nullopt},
            VtpmNew{1, uuid},
            VtpmDel{uuid}};
}

Bytes frame(std::string_view hex) { return from_hex(hex).value(); }
Errc refused(const Result<Request>& r) {
    REQUIRE(r.has_error());
    return r.error().code;
}

} // namespace

TEST_SUITE("proto") {
    TEST_CASE("management: the bytes of Xen's script") {
        CHECK((parse(frame("01c20000000a02000101")).value() == Request(GroupList{})));
        CHECK((parse(frame("01c20000000e0200010700000001")).value() == Request(GroupShow{1})));
        CHECK((parse(frame("01c2000000120200020100000001"
                           "00000000"))
                   .value() == Request(VtpmList{1, 0})));
        CHECK((parse(frame("01c20000000e0200010300000001")).value() == Request(GroupDel{1})));
        CHECK((parse(frame("01c20000000e0200020400000000")).value() == Request(VtpmNew{0, std::nullopt})));
        // 17 bytes: the script puts a zero behind the UUID.
        CHECK((parse(frame("01c20000001f020002040000000100112233445566778899aabbccddeeff00")).value() ==
               Request(VtpmNew{1, uuid})));
        CHECK((parse(frame("01c20000001e020002040000000100112233445566778899aabbccddeeff")).value() ==
               Request(VtpmNew{1, uuid})));
        CHECK((parse(frame("01c20000001a0200020500112233445566778899aabbccddeeff")).value() == Request(VtpmDel{uuid})));
        CHECK(parse_header(encode(Request(GroupNew{hash(0), number(1)})))->size == 10 + 20 + 256);
    }

    TEST_CASE("management: a config list is signed and sent in one form") {
        CHECK(to_hex(encode(ConfigList{.sequence = 7, .platforms = {hash(1)}, .labels = {}})) ==
              "00000000000000070000000101010101010101010101010101010101010101010000"
              "0000");
        // The selections stand behind the list, little-endian in three bytes.
        const Bytes whole = encode(Request(GroupUpdate{1, number(4), list(), {0x0E00FF, 0x10}}));
        CHECK(to_hex(ByteView(whole).last(10)) == "0003ff000e0003100000");
    }

    TEST_CASE("management: there and back, truncated at every length, a trailing byte") {
        for (const Request& r : all()) {
            CAPTURE(name_of(r));
            const Bytes whole = encode(r);
            auto back = parse(whole);
            REQUIRE(back.has_value());
            CHECK((*back == r));
            const auto code = parse_header(whole)->code;
            const ByteView body = body_of(whole);
            for (std::size_t n = 0; n < body.size(); ++n) {
                auto cut = parse(make_frame(tag::management, code, body.first(n)));
                if (std::holds_alternative<VtpmNew>(r) && (n == 4 || n == 20)) {
                    CHECK(cut.has_value()); // the UUID, and the byte behind it, may be left out
                } else {
                    CHECK(refused(cut) == Errc::protocol);
                }
            }
            Bytes longer = to_bytes(body);
            longer.push_back(std::byte{1});
            CHECK(refused(parse(make_frame(tag::management, code, longer))) == Errc::protocol);
        }
    }

    TEST_CASE("management: values that make no sense") {
        CHECK(refused(parse(make_frame(tag::management, 0x02000100))) == Errc::unsupported);
        CHECK(refused(parse(make_frame(tag::management, 0x02000206))) == Errc::unsupported);
        CHECK(refused(parse(encode(Request(VtpmDel{Uuid{}})))) == Errc::usage);
        CHECK(refused(parse(encode(Request(VtpmNew{1, Uuid{}})))) == Errc::usage);
        WireWriter quote; // PCR 24, in a fourth byte
        quote.be32(1).bytes(hash(4)).be16(4).be32(1);
        CHECK(refused(parse(make_frame(tag::management, ordinal::group_quote, quote.view()))) == Errc::usage);
        WireWriter wide; // five bytes of bitmap
        wide.be32(1).bytes(hash(4)).be16(5).zeros(5);
        CHECK(refused(parse(make_frame(tag::management, ordinal::group_quote, wide.view()))) == Errc::protocol);
        WireWriter many; // more platforms than there are bytes: nothing is reserved for them
        many.be32(1).bytes(number(4)).be64(1).be32(0xFFFFFFFF).zeros(40);
        CHECK(refused(parse(make_frame(tag::management, ordinal::group_update, many.view()))) == Errc::protocol);
        Bytes nonzero = encode(Request(VtpmNew{1, uuid}));
        nonzero.back() = std::byte{1};
        CHECK(refused(parse(nonzero)) == Errc::protocol);
    }

    TEST_CASE("management: the modulus of a TPM_KEY") {
        const Number expected = number(0x6D);
        CHECK(to_hex(modulus_of_key(tpm_key())) == to_hex(expected));
        const Bytes key = tpm_key();
        CHECK(modulus_of_key(ByteView(key).first(100)).empty());
    }

    TEST_CASE("management: a long VTPM_LIST comes in parts that fit a ring's page") {
        std::vector<Uuid> many(600);
        for (std::size_t i = 0; i < many.size(); ++i) {
            many[i].bytes[14] = static_cast<std::byte>(i >> 8U);
            many[i].bytes[15] = static_cast<std::byte>(i);
        }
        std::vector<Uuid> got;
        unsigned requests = 0;
        while (got.size() < many.size()) {
            const Bytes body = encode_vtpm_list(many, static_cast<std::uint32_t>(got.size()));
            CHECK(header_size + body.size() <= answer_limit);
            WireReader in(body);
            CHECK(in.be32() == many.size());
            while (in.remaining() != 0) {
                got.push_back(Uuid{in.array<16>()});
            }
            REQUIRE(in.ok());
            REQUIRE(++requests < 10);
        }
        CHECK((got == many));
        CHECK(requests == 3);
        CHECK(encode_vtpm_list(many, 600).size() == 4);
        CHECK(encode_vtpm_list(many, 0xFFFFFFFF).size() == 4);
    }

    TEST_CASE("management: a vTPM's status") {
        const VtpmStatus s{.group = 2,
                           .open = true,
                           .has_state = true,
                           .administrator = true,
                           .version = 0x0102,
                           .created = 1,
                           .saves = 2};
        CHECK(to_hex(encode(s)) == "00000002"
                                   "00000007"
                                   "00000102"
                                   "0000000000000001"
                                   "0000000000000002");
    }
}

} // namespace proto_management_test
