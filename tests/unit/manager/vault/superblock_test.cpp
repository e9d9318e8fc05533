#include "manager/vault/key_wrap.hpp"
#include "manager/vault/recovery_keys.hpp"
#include "manager/vault/superblock.hpp"

#include "check.hpp"
#include "util/text.hpp"

namespace manager_superblock_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

Keyring sample_keyring() {
    Keyring k;
    k.image = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();
    k.master = SecretBytes(Bytes(32, std::byte{0x11}));
    k.group0 = SecretBytes(Bytes(32, std::byte{0x22}));
    k.counter = {.handle = 0x01800004, .auth = Bytes(3, std::byte{0x33})};
    k.counter_base = 5;
    return k;
}

Superblock sample_superblock() {
    Superblock s;
    s.image = sample_keyring().image;
    s.complete = true;
    s.sealed.blob = Bytes(300, std::byte{0x44});
    s.sealed.selection = {.bank = hwtpm::HashAlg::sha256, .pcrs = {0, 7, 23}};
    for (unsigned p : s.sealed.selection.pcrs) {
        s.sealed.values.push_back({.bank = hwtpm::HashAlg::sha256, .index = p, .digest = Bytes(32, std::byte{0x55})});
    }
    s.counter_handle = 0x01800004;
    s.tpm_identity = Bytes(34, std::byte{0x66});
    s.tpm_description = "a TPM";
    s.recovery = {{.id = "0badcafe",
                   .created = 1'700'000'000,
                   .label = "safe",
                   .kept = Bytes(60, std::byte{0x88}),
                   .box = Bytes(140, std::byte{0x77})},
                  {.id = {}, .created = 0, .label = {}, .kept = {}, .box = Bytes(140, std::byte{0x99})}};
    return s;
}

std::string repeated(const char* digits, int n) {
    std::string out;
    while (n-- > 0) {
        out += digits;
    }
    return out;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("keyring: round trip, golden bytes, truncation, a trailing byte, another version") {
        SecretBytes packed = pack(sample_keyring()).value();
        CHECK(to_hex(packed.view()) == "01"
                                       "00112233445566778899aabbccddeeff" +
                                           repeated("11", 32) + repeated("22", 32) +
                                           "01800004"
                                           "0000000000000005"
                                           "03"
                                           "333333");
        Keyring back = unpack(packed.view()).value();
        CHECK(back.image == sample_keyring().image);
        CHECK(back.master.equals(sample_keyring().master.view()));
        CHECK(back.group0.equals(sample_keyring().group0.view()));
        CHECK(back.counter.handle == 0x01800004);
        CHECK(back.counter.auth == sample_keyring().counter.auth);
        CHECK(back.counter_base == 5);
        for (std::size_t n = 0; n < packed.size(); ++n) {
            CHECK(unpack(packed.view().first(n)).error().code == Errc::corrupt);
        }
        Bytes longer = to_bytes(packed.view());
        longer.push_back(std::byte{0});
        CHECK(unpack(longer).error().code == Errc::corrupt);
        longer[0] = std::byte{2};
        CHECK(unpack(longer).error().code == Errc::version);
    }
    TEST_CASE("keyring: fits what every TPM seals, at most 128 bytes") {
        Keyring k = sample_keyring();
        k.counter.auth = Bytes(counter_auth_limit);
        CHECK(pack(k).value().size() <= 128);
        k.counter.auth.push_back(std::byte{0});
        CHECK(pack(k).error().code == Errc::too_large);
    }
    TEST_CASE("superblock: round trip, truncation, a trailing byte, another version") {
        Bytes bytes = encode(sample_superblock());
        Superblock back = decode_superblock(bytes).value();
        CHECK(back.complete);
        CHECK(back.image == sample_superblock().image);
        CHECK(back.sealed.blob == sample_superblock().sealed.blob);
        CHECK(back.sealed.selection == sample_superblock().sealed.selection);
        REQUIRE(back.sealed.values.size() == 3);
        CHECK(back.sealed.values[2].index == 23);
        CHECK(back.sealed.values[2].digest == Bytes(32, std::byte{0x55}));
        CHECK(back.counter_handle == 0x01800004);
        CHECK(back.tpm_identity == sample_superblock().tpm_identity);
        CHECK(back.tpm_description == "a TPM");
        CHECK(back.recovery == sample_superblock().recovery);
        CHECK(encode(back) == bytes);
        for (std::size_t n = 0; n < bytes.size(); ++n) {
            CHECK(decode_superblock(ByteView(bytes).first(n)).error().code == Errc::corrupt);
        }
        bytes.push_back(std::byte{0});
        CHECK(decode_superblock(bytes).error().code == Errc::corrupt);
        bytes[1] = std::byte{9};
        CHECK(decode_superblock(bytes).error().code == Errc::version);
    }
    TEST_CASE("superblock: golden bytes, which stay readable for ever") {
        Superblock s = sample_superblock();
        s.complete = false;
        s.recovery.clear();
        s.sealed.values.resize(1);
        s.sealed.blob.resize(2);
        s.tpm_identity.resize(1);
        const std::string head = "00"
                                 "00112233445566778899aabbccddeeff"
                                 "01800004"
                                 "000166"
                                 "0005"
                                 "612054504d";
        const std::string rest = "000b"
                                 "00800081"
                                 "0001"
                                 "000b0020" +
                                 repeated("55", 32) + "00024444";
        CHECK(to_hex(encode(s)) == "0002" + head + "00" + rest);
        // With a recovery key; and version 1, which had one at most and knew nothing of it.
        s.recovery = {sample_superblock().recovery[0]};
        s.recovery[0].kept.resize(2);
        s.recovery[0].box.resize(3);
        const std::string key = "01"
                                "08"
                                "3062616463616665"
                                "000000006553f100"
                                "04"
                                "73616665"
                                "00028888"
                                "0003777777";
        CHECK(to_hex(encode(s)) == "0002" + head + key + rest);
        const Superblock old = decode_superblock(from_hex("0001" + head + "0003777777" + rest).value()).value();
        REQUIRE(old.recovery.size() == 1);
        CHECK(old.recovery[0] ==
              RecoveryKey{.id = {}, .created = 0, .label = {}, .kept = {}, .box = Bytes(3, std::byte{0x77})});
        CHECK(decode_superblock(from_hex("0001" + head + "0000" + rest).value()).value().recovery.empty());
    }
    TEST_CASE("superblock: more recovery keys than it may have are refused") {
        Superblock s = sample_superblock();
        s.recovery.resize(recovery_key_limit);
        CHECK(decode_superblock(encode(s)));
        s.recovery.resize(recovery_key_limit + 1);
        CHECK(decode_superblock(encode(s)).error().code == Errc::corrupt);
    }
    TEST_CASE("recovery keys: each opens the keyring as it is now, once all boxes are closed anew") {
        Keyring keyring = sample_keyring();
        const SecretBytes first = store::random_key();
        const SecretBytes second = store::random_key();
        std::vector<RecoveryKey> keys{make_recovery_key(first, keyring, {.label = "a", .created = 1}).value(),
                                      make_recovery_key(second, keyring, {.label = {}, .created = 2}).value()};
        CHECK(keys[0].id == recovery_key_id(first, keyring.image));
        CHECK(keys[0].id.size() == 8);
        CHECK(keys[0].id != keys[1].id);
        keyring.counter = {.handle = 77, .auth = Bytes(4, std::byte{1})};
        CHECK(close_recovery_boxes(keys, keyring).value() == 0);
        for (const SecretBytes* key : {&first, &second}) {
            CHECK(open_recovery_box(keys, *key, keyring.image).value().counter.handle == 77);
        }
        CHECK(open_recovery_box(keys, store::random_key(), keyring.image).error().code == Errc::mismatch);
        CHECK(open_recovery_box(keys, first, random_uuid()).error().code == Errc::mismatch);
        // One that an older program made stays as it is, and is known once it was used.
        keys[0].kept.clear();
        keys[0].id.clear();
        keyring.counter.handle = 78;
        CHECK(close_recovery_boxes(keys, keyring).value() == 1);
        CHECK(open_recovery_box(keys, first, keyring.image).value().counter.handle == 77);
        CHECK(keys[0].id == recovery_key_id(first, keyring.image));
        CHECK(close_recovery_boxes(keys, keyring).value() == 0);
        CHECK(open_recovery_box(keys, first, keyring.image).value().counter.handle == 78);
        // What is kept is of this store's key only.
        Keyring other = sample_keyring();
        other.master = store::random_key();
        CHECK(close_recovery_boxes(keys, other).error().code == Errc::corrupt);
    }
    TEST_CASE("recovery keys: a label is one line of printable text") {
        CHECK(check_recovery_label(""));
        CHECK(check_recovery_label("safe at München"));
        for (const std::string& bad : {std::string("two\nlines"), std::string("\xff"), std::string(65, 'x')}) {
            CHECK(check_recovery_label(bad).error().code == Errc::usage);
        }
    }
    TEST_CASE("hash key wrap: opens in its own place only") {
        SecretBytes group_key = store::random_key();
        KeyPlace place{.uuid = random_uuid(), .group = 3, .sequence = 9};
        for (std::size_t size : {hash_key_short, hash_key_long}) {
            Bytes hash_key(size, std::byte{0x5a});
            WrappedKey wrapped = wrap_hash_key(group_key, place, hash_key).value();
            CHECK(unwrap_hash_key(group_key, place, wrapped).value().equals(hash_key));
            CHECK(wrap_hash_key(group_key, place, hash_key).value() != wrapped); // a fresh nonce

            KeyPlace other = place;
            other.uuid = random_uuid();
            CHECK(unwrap_hash_key(group_key, other, wrapped).error().code == Errc::corrupt);
            other = place;
            other.group = 4;
            CHECK(unwrap_hash_key(group_key, other, wrapped).error().code == Errc::corrupt);
            other = place;
            other.sequence = 8;
            CHECK(unwrap_hash_key(group_key, other, wrapped).error().code == Errc::corrupt);
            CHECK(unwrap_hash_key(store::random_key(), place, wrapped).error().code == Errc::corrupt);
            for (std::size_t i = 0; i < wrapped.size(); ++i) {
                Bytes flipped = to_bytes(wrapped.view());
                flipped[i] ^= std::byte{1};
                CHECK(unwrap_hash_key(group_key, place, WrappedKey::from(flipped).value()).has_error());
            }
        }
        CHECK(wrap_hash_key(group_key, place, Bytes(63)).error().code == Errc::protocol);
        CHECK(wrap_hash_key(group_key, place, Bytes{}).error().code == Errc::protocol);
    }
    TEST_CASE("new keys differ even if the TPM's randomness does not") {
        Bytes same(32);
        CHECK_FALSE(mix_key(same).equals(mix_key(same).view()));
    }
}

} // namespace manager_superblock_test
