#include "check.hpp"
#include "manager/vault/records.hpp"
#include "util/text.hpp"

namespace manager_records_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {
const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();

WrappedKey wrapped(std::size_t hash_key_size) {
    Bytes bytes(hash_key_size + WrappedKey::overhead, std::byte{0x5a});
    return WrappedKey::from(bytes).value();
}

const std::vector<Record>& samples() {
    static const std::vector<Record> all{
        GroupRecord{.id = 0x01020304, .uuid = uuid, .created = 0x0a},
        VtpmRecord{.uuid = uuid, .group = 7, .version = TpmVersion::tpm12, .created = 0x0b},
        VtpmRecord{.uuid = uuid, .group = 0, .version = TpmVersion::tpm20, .created = 0x0c},
        KeyRecord{.uuid = uuid, .sequence = 9, .key = wrapped(hash_key_long)},
        KeyRecord{.uuid = uuid, .sequence = 1, .key = wrapped(hash_key_short)},
        TombstoneRecord{.uuid = uuid, .reason = TombstoneRecord::Reason::deleted, .when = 0x0d},
        TombstoneRecord{.uuid = uuid, .reason = TombstoneRecord::Reason::migrated, .when = 0x0e},
        FreshnessRecord{.counter = 0xfedcba9876543210},
        GroupDetailRecord{.id = 3, .detail = Bytes(5, std::byte{0xd})},
        GroupGoneRecord{.id = 0x01020304},
        ResetRecord{.uuid = uuid, .sequence = 0x11, .when = 0x12, .given_up = Bytes(32, std::byte{0x5b})},
        ResetRecord{.uuid = uuid, .sequence = 0x13, .when = 0x14, .given_up = Bytes(20, std::byte{0x5c})},
        NameRecord{.uuid = uuid, .name = "Zürich"},
        NameRecord{.uuid = uuid, .name = ""},
        MovedRecord{.uuid = uuid, .group = 0x05060708},
        CertifierRecord{.id = 0x01020304, .detail = Bytes(3, std::byte{0xca})},
        TombstoneRecord{.uuid = uuid, .reason = TombstoneRecord::Reason::migrated, .when = 0x0f, .group = uuid},
        NumberRecord{.uuid = uuid, .number = 0x01020304},
        OwnerRecord{.uuid = uuid, .user = 0x05060708},
        OwnerRecord{.uuid = uuid, .user = 0},
    };
    return all;
}
} // namespace

TEST_SUITE("manager") {
    TEST_CASE("records: round trip") {
        for (const Record& r : samples()) {
            auto back = decode(encode(r));
            REQUIRE(back.has_value());
            CHECK((*back == r));
        }
    }
    TEST_CASE("records: cut at any length, or one byte longer, is corrupt") {
        for (const Record& r : samples()) {
            Bytes bytes = encode(r);
            for (std::size_t n = 0; n < bytes.size(); ++n) {
                auto cut = decode(ByteView(bytes).first(n));
                INFO("type ", int(bytes[0]), " cut at ", n);
                REQUIRE(cut.has_error());
                CHECK(cut.error().code == Errc::corrupt);
            }
            bytes.push_back(std::byte{0});
            auto longer = decode(bytes);
            REQUIRE(longer.has_error());
            CHECK(longer.error().code == Errc::corrupt);
        }
    }
    TEST_CASE("records: golden bytes, which stay readable for ever") {
        const std::string id = "00112233445566778899aabbccddeeff";
        CHECK(to_hex(encode(samples()[0])) == "0101"
                                              "01020304" +
                                                  id + "000000000000000a");
        CHECK(to_hex(encode(samples()[1])) == "0201" + id +
                                                  "00000007"
                                                  "01"
                                                  "000000000000000b");
        CHECK(to_hex(encode(samples()[2])) == "0201" + id +
                                                  "00000000"
                                                  "02"
                                                  "000000000000000c");
        std::string key;
        for (std::size_t i = 0; i < hash_key_long + WrappedKey::overhead; ++i) {
            key += "5a";
        }
        CHECK(to_hex(encode(samples()[3])) == "0301" + id + "00000000000000095c" + key);
        CHECK(to_hex(encode(samples()[16])) == "0e01" + id + id + "000000000000000f");
        CHECK(to_hex(encode(samples()[17])) == "0d01" + id + "01020304");
        CHECK(to_hex(encode(samples()[5])) == "0401" + id +
                                                  "01"
                                                  "000000000000000d");
        CHECK(to_hex(encode(samples()[6])) == "0401" + id +
                                                  "02"
                                                  "000000000000000e");
        CHECK(to_hex(encode(samples()[7])) == "0501"
                                              "fedcba9876543210");
        CHECK(to_hex(encode(samples()[11])) == "0c01" + id +
                                                   "0000000000000013"
                                                   "0000000000000014"
                                                   "14"
                                                   "5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c");
        CHECK(to_hex(encode(samples()[12])) == "0b01" + id + "075ac3bc72696368");
        CHECK(to_hex(encode(samples()[13])) == "0b01" + id + "00");
        CHECK(to_hex(encode(samples()[14])) == "0901" + id + "05060708");
        CHECK(to_hex(encode(samples()[15])) == "0a01"
                                               "0102030400000003cacaca");
    }
    TEST_CASE("records: an unknown type or version is of a newer program, not corrupt") {
        for (const Record& r : samples()) {
            Bytes bytes = encode(r);
            bytes[1] = std::byte{2};
            CHECK(decode(bytes).error().code == Errc::version);
            bytes = encode(r);
            bytes[0] = std::byte{0};
            CHECK(decode(bytes).error().code == Errc::version);
            bytes[0] = std::byte{99};
            CHECK(decode(bytes).error().code == Errc::version);
        }
    }
    TEST_CASE("records: values that cannot be are corrupt") {
        Bytes bytes = encode(samples()[1]);
        bytes[22] = std::byte{3}; // TPM version
        CHECK(decode(bytes).error().code == Errc::corrupt);
        bytes = encode(samples()[5]);
        bytes[18] = std::byte{0}; // reason
        CHECK(decode(bytes).error().code == Errc::corrupt);
        for (std::size_t n : {0U, 19U, 31U, 33U}) {
            CHECK(decode(encode(ResetRecord{.uuid = uuid, .sequence = 1, .given_up = Bytes(n)})).error().code ==
                  Errc::corrupt);
        }
        CHECK(decode(encode(ResetRecord{.uuid = uuid, .sequence = 0, .given_up = Bytes(32)})).error().code ==
              Errc::corrupt);
        CHECK(decode(encode(KeyRecord{.uuid = uuid, .sequence = 0, .key = wrapped(hash_key_long)})).error().code ==
              Errc::corrupt);
    }
    TEST_CASE("records: a name has its limits") {
        CHECK(decode(encode(NameRecord{.uuid = uuid, .name = std::string(65, 'x')})).error().code == Errc::corrupt);
        CHECK(decode(encode(NameRecord{.uuid = uuid, .name = std::string(64, 'x')})));
        for (const char* good : {"a", "web server 3", "Zürich", "\"quoted\\", "00112233"}) {
            CHECK(check_vtpm_name(good));
        }
        CHECK(check_vtpm_name(std::string(64, 'x')));
        for (const char* bad : {"", " a", "a ", "a\nb", "\xff", "00112233-4455-6677-8899-AABBCCDDEEFF"}) {
            CHECK(check_vtpm_name(bad).error().code == Errc::usage);
        }
        CHECK(check_vtpm_name(std::string(65, 'x')).error().code == Errc::usage);
    }
    TEST_CASE("wrapped key: only the two sizes of hash keys") {
        for (std::size_t n = 0; n < 128; ++n) {
            Bytes bytes(n);
            bool fits = n == hash_key_short + WrappedKey::overhead || n == hash_key_long + WrappedKey::overhead;
            CHECK(WrappedKey::from(bytes).has_value() == fits);
        }
    }
}

} // namespace manager_records_test
