// The Diffie-Hellman of the old protocol's recovery: halves that are refused, and what OpenSSL's command line makes of the same.
#include "check.hpp"
#include "manager/groups/vtpmmgr_recovery.hpp"
#include "util/text.hpp"

#include <openssl/bn.h>

namespace manager_old_recovery_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using proto::management::Blob;
using proto::management::Number;

namespace {

Number filled(unsigned value) {
    Number out;
    out.fill(static_cast<std::byte>(value));
    return out;
}
Uuid a_group(unsigned value) {
    Uuid out;
    out.bytes.fill(static_cast<std::byte>(value));
    return out;
}
/// p - less, of the 2048-bit group (OpenSSL's own table of primes).
Number prime_minus(unsigned long less) {
    BIGNUM* p = BN_get_rfc3526_prime_2048(nullptr);
    REQUIRE(p != nullptr);
    REQUIRE(BN_sub_word(p, less) == 1);
    Number out{};
    REQUIRE(BN_bn2binpad(p, uchar_ptr(MutByteView(out)), static_cast<int>(out.size())) > 0);
    BN_free(p);
    return out;
}
Number small(unsigned value) {
    Number out{};
    out.back() = static_cast<std::byte>(value);
    return out;
}
SecretBytes key_of(unsigned value) { return SecretBytes(ByteView(Bytes(32, static_cast<std::byte>(value)))); }

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("old recovery: both sides share one number, strangers another") {
        auto one = DhHalf::make();
        auto two = DhHalf::make();
        auto three = DhHalf::make();
        REQUIRE(one);
        REQUIRE(two);
        REQUIRE(three);
        CHECK(one->value() != two->value());
        auto shared = one->share(two->value());
        REQUIRE(shared);
        CHECK(shared->size() == 256);
        CHECK(shared->equals(two->share(one->value())->view()));
        CHECK_FALSE(shared->equals(one->share(three->value())->view()));
    }

    TEST_CASE("old recovery: a half that is 0, 1, p-1, not below p, or not of prime order is refused") {
        auto half = DhHalf::make();
        REQUIRE(half);
        Number above = prime_minus(1); // p + 1: the last bytes of p are all ones
        above.back() = std::byte{0xFF};
        const std::pair<const char*, Number> all[]{
            {"0", small(0)},         {"1", small(1)},        {"p - 1", prime_minus(1)}, {"p", prime_minus(0)},
            {"above", filled(0xFF)}, {"-2", prime_minus(2)}, {"-4", prime_minus(4)},    {"p again", above},
        };
        for (const auto& half_of_other : all) {
            auto shared = half->share(half_of_other.second);
            CAPTURE(half_of_other.first);
            REQUIRE(shared.has_error());
            CHECK(shared.error().code == Errc::usage);
        }
        CHECK(half->share(small(2))); // the generator
        CHECK(half->share(small(4)));
    }

    TEST_CASE("golden: a blob as OpenSSL's command line makes it") {
        // t: REGR, 16 bytes 0x67, 256 each of 0x11, 0x22, 0x33; k: 32 bytes 0x44
        // openssl enc -aes-256-ctr -K $(openssl dgst -sha256 -r t | cut -c1-64) -iv 00000000000000000000000000000000 -in k
        const DhExchange exchange{
            .name = exchange_register, .group = a_group(0x67), .first = filled(0x11), .second = filled(0x22)};
        const SecretBytes shared{ByteView(filled(0x33))};
        auto blob = close_blob(exchange, shared, key_of(0x44));
        REQUIRE(blob);
        CHECK(to_hex(*blob) == "2879ec5daef3ad09796db526d1943b22a09a2a56b25412df1ba93ff328fc0489");
        CHECK(open_blob(exchange, shared, *blob)->equals(key_of(0x44).view()));
        // Every field of the exchange counts.
        for (int field = 0; field < 4; ++field) {
            DhExchange other = exchange;
            (field == 0 ? other.first : other.second).back() ^= static_cast<std::byte>(field < 2);
            other.group.bytes[15] ^= static_cast<std::byte>(field == 2);
            other.name = field == 3 ? exchange_recover : exchange_register;
            CHECK_FALSE(open_blob(other, shared, *blob)->equals(key_of(0x44).view()));
        }
        SecretBytes another = shared.clone();
        another.data()[255] ^= std::byte{1};
        CHECK_FALSE(open_blob(exchange, another, *blob)->equals(key_of(0x44).view()));
        CHECK(close_blob(exchange, shared, SecretBytes(31)).error().code == Errc::usage);
    }

    TEST_CASE("golden: what an approver signs") {
        const Bytes message = register_message(a_group(0x67), filled(0x11));
        CHECK(to_hex(ByteView(message).first(21)) == "52454752"
                                                     "67676767676767676767676767676767"
                                                     "11");
        CHECK(message.size() == 4 + 16 + 256);
    }
}

} // namespace manager_old_recovery_test
