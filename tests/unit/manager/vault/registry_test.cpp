#include "manager/vault/registry.hpp"

#include <doctest/doctest.h>

namespace manager_registry_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xee};
    for (unsigned i = 0; i < 4; ++i) {
        u.bytes[12 + i] = static_cast<std::byte>(n >> (24 - 8 * i));
    }
    return u;
}

KeyRecord key_of(unsigned n, std::uint64_t sequence, std::size_t size = hash_key_long) {
    Bytes bytes(size + WrappedKey::overhead, static_cast<std::byte>(n + sequence));
    return {.uuid = uuid_of(n), .sequence = sequence, .key = WrappedKey::from(bytes).value()};
}

void must(const Result<void>& r) {
    INFO((r ? std::string() : r.error().message));
    REQUIRE(r.has_value());
}

void must_not(const Result<void>& r) {
    REQUIRE(r.has_error());
    CHECK(r.error().code == Errc::corrupt);
}

Registry with_group() {
    Registry registry;
    must(registry.apply(GroupRecord{.id = 0, .uuid = uuid_of(1000), .created = 5}));
    return registry;
}

std::vector<Record> records_of(const Registry& registry) {
    std::vector<Record> out;
    registry.snapshot([&](const Record& r) { out.push_back(r); });
    return out;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("registry: a vTPM's life") {
        Registry registry = with_group();
        CHECK(registry.find(uuid_of(1)) == nullptr);
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1), .version = TpmVersion::tpm12, .created = 6}));
        const auto* v = registry.find(uuid_of(1));
        REQUIRE(v != nullptr);
        CHECK(v->sequence == 0);
        CHECK(v->key.empty());
        CHECK(v->version == TpmVersion::tpm12);
        CHECK(registry.group(0)->vtpms == 1);

        must(registry.apply(key_of(1, 1)));
        must(registry.apply(key_of(1, 2, hash_key_short)));
        CHECK(registry.find(uuid_of(1))->sequence == 2);
        CHECK(registry.find(uuid_of(1))->key == key_of(1, 2, hash_key_short).key);

        must(registry.apply(TombstoneRecord{.uuid = uuid_of(1), .when = 7}));
        CHECK(registry.find(uuid_of(1)) == nullptr);
        REQUIRE(registry.tombstone(uuid_of(1)) != nullptr);
        CHECK(registry.tombstone(uuid_of(1))->when == 7);
        CHECK(registry.group(0)->vtpms == 0);
    }
    TEST_CASE("registry: records that cannot follow are refused and change nothing") {
        Registry registry = with_group();
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(key_of(1, 5)));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(2)}));
        must(registry.apply(FreshnessRecord{.counter = 10}));
        auto before = records_of(registry);

        must_not(registry.apply(GroupRecord{.id = 0}));
        must_not(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));             // twice
        must_not(registry.apply(VtpmRecord{.uuid = uuid_of(3), .group = 4})); // no such group
        must_not(registry.apply(VtpmRecord{.uuid = uuid_of(2)}));             // after its tombstone
        must_not(registry.apply(key_of(3, 1)));                               // not registered
        must_not(registry.apply(key_of(2, 1)));                               // gone
        must_not(registry.apply(key_of(1, 5)));                               // the same again
        must_not(registry.apply(key_of(1, 4)));                               // older
        must_not(registry.apply(TombstoneRecord{.uuid = uuid_of(2)}));
        must_not(registry.apply(MovedRecord{.uuid = uuid_of(1), .group = 0})); // it has a key
        must_not(registry.apply(MovedRecord{.uuid = uuid_of(3), .group = 0})); // not registered
        CHECK((records_of(registry) == before));

        must(registry.apply(FreshnessRecord{.counter = 9})); // says nothing new
        CHECK((records_of(registry) == before));
    }
    TEST_CASE("registry: a vTPM that was migrated away comes back, a deleted one does not") {
        Registry registry = with_group();
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(1), .reason = TombstoneRecord::Reason::migrated}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(2), .reason = TombstoneRecord::Reason::deleted}));
        must_not(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must_not(registry.apply(VtpmRecord{.uuid = uuid_of(2), .returned = true}));
        const Record back = VtpmRecord{.uuid = uuid_of(1), .returned = true};
        CHECK(decode(encode(back)).value() == back);
        must(registry.apply(back));
        CHECK(registry.tombstone(uuid_of(1)) == nullptr);
        Registry copy;
        registry.snapshot([&](const Record& r) { must(copy.apply(r)); });
        CHECK(copy.find(uuid_of(1))->returned);
        must(copy.apply(key_of(1, 1)));
        CHECK_FALSE(copy.find(uuid_of(1))->returned);
    }
    TEST_CASE("registry: names are given, taken away, kept by a snapshot, and go with their vTPM") {
        Registry registry = with_group();
        auto named = [](unsigned n, std::string name) {
            return NameRecord{.uuid = uuid_of(n), .name = std::move(name)};
        };
        must_not(registry.apply(named(1, "a")));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(2)}));
        must(registry.apply(named(1, "a")));
        must(registry.apply(named(2, "a"))); // need not be unique
        must(registry.apply(named(2, "b")));
        Registry copy;
        registry.snapshot([&](const Record& r) { must(copy.apply(decode(encode(r)).value())); });
        CHECK(copy.name(uuid_of(1)) == "a");
        CHECK(copy.name(uuid_of(2)) == "b");
        must(copy.apply(named(1, "")));
        CHECK(copy.name(uuid_of(1)).empty());
        must(copy.apply(TombstoneRecord{.uuid = uuid_of(2)}));
        CHECK(copy.name(uuid_of(2)).empty());
        must(copy.apply(named(2, "c"))); // was under way when it was deleted
        CHECK(copy.name(uuid_of(2)).empty());
    }
    TEST_CASE("registry: a vTPM that was reset has no key, and its sequence goes on") {
        Registry registry = with_group();
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(key_of(1, 1)));
        auto reset = [](std::uint64_t sequence) {
            return ResetRecord{.uuid = uuid_of(1), .sequence = sequence, .when = 7, .given_up = Bytes(32)};
        };
        must_not(registry.apply(reset(1)));
        must_not(registry.apply(ResetRecord{.uuid = uuid_of(2), .sequence = 1, .given_up = Bytes(32)}));
        CHECK(registry.find(uuid_of(1))->has_key());
        CHECK(registry.reset(uuid_of(1)) == nullptr);
        must(registry.apply(reset(2)));
        must(registry.apply(reset(3))); // again, with nothing saved between
        must_not(registry.apply(key_of(1, 3)));
        auto check = [](const Registry& r, bool saved) {
            CHECK(r.find(uuid_of(1))->has_key() == saved);
            CHECK(r.find(uuid_of(1))->sequence == (saved ? 4 : 3));
            REQUIRE(r.reset(uuid_of(1)) != nullptr);
            CHECK(r.reset(uuid_of(1))->sequence == 3);
            CHECK(r.reset(uuid_of(1))->when == 7);
        };
        for (bool saved : {false, true}) {
            if (saved) {
                must(registry.apply(key_of(1, 4)));
            }
            check(registry, saved);
            Registry copy;
            registry.snapshot([&](const Record& r) { must(copy.apply(decode(encode(r)).value())); });
            check(copy, saved);
        }
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(1)}));
        CHECK(registry.reset(uuid_of(1)) == nullptr);
    }
    TEST_CASE("registry: numbers of a toolstack: one a vTPM, one vTPM a number; a tombstone takes its number away") {
        Registry registry = with_group();
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(2)}));
        must(registry.apply(NumberRecord{.uuid = uuid_of(1), .number = 7}));
        must_not(registry.apply(NumberRecord{.uuid = uuid_of(2), .number = 7}));
        must_not(registry.apply(NumberRecord{.uuid = uuid_of(1), .number = 8}));
        must_not(registry.apply(NumberRecord{.uuid = uuid_of(3), .number = 9}));
        Registry copy;
        registry.snapshot([&](const Record& r) { must(copy.apply(r)); });
        for (const Registry* r : {&registry, &copy}) {
            CHECK(*r->numbered(7) == uuid_of(1));
            CHECK(r->numbered(8) == nullptr);
            CHECK(r->number_of(uuid_of(1)) == 7U);
            CHECK_FALSE(r->number_of(uuid_of(2)));
        }
        must(copy.apply(TombstoneRecord{.uuid = uuid_of(1)}));
        CHECK(copy.numbered(7) == nullptr);
        CHECK_FALSE(copy.number_of(uuid_of(1)));
        must(copy.apply(NumberRecord{.uuid = uuid_of(2), .number = 7}));
        CHECK(copy.number_of(uuid_of(2)) == 7U);
    }
    TEST_CASE("registry: an owner: replaced, taken away, counted; goes with its vTPM and is in a snapshot") {
        Registry registry = with_group();
        must_not(registry.apply(OwnerRecord{.uuid = uuid_of(1), .user = 5}));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(2)}));
        CHECK(registry.owner(uuid_of(1)) == 0);
        must(registry.apply(OwnerRecord{.uuid = uuid_of(1), .user = 5}));
        must(registry.apply(OwnerRecord{.uuid = uuid_of(1), .user = 5}));
        must(registry.apply(OwnerRecord{.uuid = uuid_of(2), .user = 5}));
        CHECK(registry.owned_by(5) == 2);
        must(registry.apply(OwnerRecord{.uuid = uuid_of(2), .user = 6}));
        Registry copy;
        registry.snapshot([&](const Record& r) { must(copy.apply(decode(encode(r)).value())); });
        for (const Registry* r : {&registry, &copy}) {
            CHECK(r->owner(uuid_of(1)) == 5);
            CHECK(r->owner(uuid_of(2)) == 6);
            CHECK(r->owned_by(5) == 1);
            CHECK(r->owned_by(7) == 0);
        }
        must(registry.apply(OwnerRecord{.uuid = uuid_of(1), .user = 0}));
        CHECK(registry.owner(uuid_of(1)) == 0);
        CHECK(registry.owned_by(5) == 0);
        must(copy.apply(TombstoneRecord{.uuid = uuid_of(2)}));
        CHECK(copy.owned_by(6) == 0);
        CHECK(copy.owner(uuid_of(2)) == 0);
        must_not(copy.apply(OwnerRecord{.uuid = uuid_of(2), .user = 6}));
    }
    TEST_CASE("registry: a number goes when its vTPM migrates away, and does not come back with it") {
        Registry registry = with_group();
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
        must(registry.apply(NumberRecord{.uuid = uuid_of(1), .number = 7}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(1), .reason = TombstoneRecord::Reason::migrated}));
        must(registry.apply(VtpmRecord{.uuid = uuid_of(1), .returned = true}));
        CHECK_FALSE(registry.number_of(uuid_of(1)));
        must(registry.apply(NumberRecord{.uuid = uuid_of(1), .number = 8}));
        CHECK(registry.number_of(uuid_of(1)) == 8U);
        CHECK(registry.numbered(7) == nullptr);
    }
    TEST_CASE("registry: a group is found by its UUID, as long as it is there") {
        Registry registry = with_group();
        must(registry.apply(GroupRecord{.id = 3, .uuid = uuid_of(1003)}));
        CHECK(registry.find_group(uuid_of(1000)) == GroupId{0});
        CHECK(registry.find_group(uuid_of(1003)) == GroupId{3});
        CHECK_FALSE(registry.find_group(uuid_of(1)));
        must(registry.apply(GroupGoneRecord{.id = 3}));
        CHECK_FALSE(registry.find_group(uuid_of(1003)));
    }
    TEST_CASE("registry: a snapshot rebuilds all of it") {
        Registry registry = with_group();
        must(registry.apply(GroupRecord{.id = 3, .uuid = uuid_of(1003)}));
        for (unsigned i = 0; i < 50; ++i) {
            must(registry.apply(VtpmRecord{.uuid = uuid_of(i), .group = i % 2 == 0 ? 0U : 3U, .created = i}));
            for (unsigned s = 1; s <= i % 3; ++s) {
                must(registry.apply(key_of(i, s)));
            }
        }
        must(registry.apply(
            TombstoneRecord{.uuid = uuid_of(7), .reason = TombstoneRecord::Reason::migrated, .when = 1}));
        must(registry.apply(FreshnessRecord{.counter = 41}));
        must(registry.apply(FreshnessRecord{.counter = 42}));

        Registry copy;
        for (const Record& r : records_of(registry)) {
            must(copy.apply(decode(encode(r)).value()));
        }
        CHECK(copy.vtpm_count() == 49);
        CHECK(copy.tombstone_count() == 1);
        CHECK(copy.freshness() == 42);
        CHECK(copy.group(0)->vtpms == 25);
        CHECK(copy.group(3)->vtpms == 24);
        CHECK(copy.tombstone(uuid_of(7))->reason == TombstoneRecord::Reason::migrated);
        for (const auto& [uuid, v] : registry.vtpms()) {
            const auto* c = copy.find(uuid);
            REQUIRE(c != nullptr);
            CHECK(c->sequence == v.sequence);
            CHECK(c->key == v.key);
            CHECK(c->group == v.group);
            CHECK(c->created == v.created);
        }
    }
    TEST_CASE("registry: a group's CA comes after it, is replaced, and goes with it") {
        Registry registry = with_group();
        must_not(registry.apply(CertifierRecord{.id = 3, .detail = Bytes(1)}));
        must(registry.apply(GroupRecord{.id = 3, .uuid = uuid_of(1003)}));
        for (const GroupId id : {0U, 3U}) {
            CHECK(registry.group(id)->certifier.empty());
            must(registry.apply(CertifierRecord{.id = id, .detail = Bytes(1)}));
            must(registry.apply(CertifierRecord{.id = id, .detail = Bytes(2 + id)}));
        }
        Registry copy;
        for (const Record& r : records_of(registry)) {
            must(copy.apply(decode(encode(r)).value()));
        }
        CHECK(copy.group(0)->certifier == Bytes(2));
        CHECK(copy.group(3)->certifier == Bytes(5));
        must(copy.apply(GroupGoneRecord{.id = 3}));
        must_not(copy.apply(CertifierRecord{.id = 3, .detail = Bytes(1)}));
        must(copy.apply(GroupRecord{.id = 3, .uuid = uuid_of(1003)}));
        CHECK(copy.group(3)->certifier.empty());
    }
    TEST_CASE("registry: 20,000 vTPMs are a few megabytes of records") {
        Registry registry = with_group();
        std::size_t bytes = 0;
        for (unsigned i = 0; i < 20'000; ++i) {
            must(registry.apply(VtpmRecord{.uuid = uuid_of(i)}));
            must(registry.apply(key_of(i, 1)));
        }
        registry.snapshot([&](const Record& r) { bytes += encode(r).size(); });
        CHECK(bytes < 4'000'000); // a checkpoint fits into half of a 16 MiB image
        CHECK(sizeof(Registry::Vtpm) + sizeof(Uuid) < 160);
    }
}

} // namespace manager_registry_test
