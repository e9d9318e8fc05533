// What is checked before it is written can be applied, whatever came before it in the same batch; and what it takes in a
// snapshot is known before it is there.
#include "manager/vault/registry.hpp"

#include "check.hpp"

#include <algorithm>
#include <random>
#include <vector>

namespace manager_registry_rules_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xee};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

WrappedKey key(std::size_t size = hash_key_long) {
    return WrappedKey::from(Bytes(size + WrappedKey::overhead, std::byte{1})).value();
}

/// Bytes of the snapshot's records, each with 4 more; with freshness, which is always counted.
std::uint64_t real_size(const Registry& registry) {
    std::uint64_t size = registry.freshness() ? 0 : size_of_nothing().now;
    registry.snapshot([&](const Record& r) { size += 4 + encode(r).size(); });
    return size;
}

/// Few of everything, so that they meet.
Record any_record(std::mt19937& random) {
    auto one_of = [&random](unsigned n) { return static_cast<unsigned>(random() % n); };
    const Uuid uuid = uuid_of(one_of(4));
    const GroupId group = one_of(3);
    switch (one_of(13)) {
    case 0:
        return GroupRecord{.id = group, .uuid = uuid_of(100 + one_of(3))};
    case 1:
        return GroupDetailRecord{.id = group, .detail = Bytes(1 + one_of(50))};
    case 2:
        return GroupGoneRecord{.id = group};
    case 3:
        return VtpmRecord{.uuid = uuid, .group = group, .returned = one_of(3) == 0};
    case 4:
        return MovedRecord{.uuid = uuid, .group = group};
    case 5:
        return NumberRecord{.uuid = uuid, .number = 1 + one_of(3)};
    case 6:
        return KeyRecord{.uuid = uuid, .sequence = 1 + one_of(4), .key = key(one_of(2) == 0 ? 52 : 64)};
    case 7:
        return NameRecord{.uuid = uuid, .name = std::string(one_of(4), 'n')};
    case 8:
        return ResetRecord{
            .uuid = uuid, .sequence = 1 + one_of(4), .when = 1, .given_up = Bytes(one_of(2) == 0 ? 20 : 32)};
    case 9:
        return TombstoneRecord{.uuid = uuid,
                               .reason = one_of(2) == 0 ? TombstoneRecord::Reason::deleted
                                                        : TombstoneRecord::Reason::migrated};
    case 11:
        return OwnerRecord{.uuid = uuid, .user = one_of(3)};
    case 10:
        return FreshnessRecord{.counter = one_of(9)};
    default:
        return CertifierRecord{.id = group, .detail = Bytes(1 + one_of(3000))};
    }
}

void must(const Result<void>& r) {
    INFO((r ? std::string() : r.error().message));
    REQUIRE(r.has_value());
}

Registry with_group() {
    Registry registry;
    must(registry.apply(GroupRecord{.id = 0, .uuid = uuid_of(99)}));
    return registry;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE(
        "rules: what a draft takes can be applied, and both come to the same size, over batches drawn by chance") {
        unsigned taken = 0;
        unsigned refused = 0;
        for (std::uint32_t seed = 0; seed < 200; ++seed) {
            std::mt19937 random(seed);
            Registry registry = with_group();
            for (unsigned batch = 0; batch < 20; ++batch) {
                Draft draft(&registry);
                std::vector<Record> records;
                for (unsigned call = 0; call < 3; ++call) { // of one to three records, all or none
                    Draft later(&draft);
                    std::vector<Record> wanted(1 + random() % 3);
                    bool all = true;
                    for (Record& r : wanted) {
                        r = any_record(random);
                        all = all && later.add(r).has_value();
                    }
                    const SnapshotSize size = draft.snapshot_size();
                    if (all) {
                        CHECK(later.snapshot_size().most >= later.snapshot_size().now);
                        draft.absorb(std::move(later));
                        records.insert(records.end(), wanted.begin(), wanted.end());
                        ++taken;
                    } else {
                        CHECK((draft.snapshot_size() == size));
                        ++refused;
                    }
                }
                const SnapshotSize expected = draft.snapshot_size();
                for (const Record& r : records) {
                    CAPTURE(seed);
                    must(registry.apply(decode(encode(r)).value()));
                }
                CHECK((registry.snapshot_size() == expected));
                CHECK(registry.snapshot_size().now == real_size(registry));
            }
            Registry copy;
            registry.snapshot([&](const Record& r) { must(copy.apply(decode(encode(r)).value())); });
            CHECK((copy.snapshot_size() == registry.snapshot_size()));
        }
        CHECK(taken > 1000);
        CHECK(refused > 1000);
    }

    TEST_CASE("rules: of two changes that meet, the second is judged by the first, in either order") {
        // Each pair leaves a registry that its records rebuild.
        const std::vector<Record> changes{
            GroupRecord{.id = 2, .uuid = uuid_of(102)},
            GroupDetailRecord{.id = 1, .detail = Bytes(3)},
            GroupGoneRecord{.id = 1},
            VtpmRecord{.uuid = uuid_of(5), .group = 1},
            VtpmRecord{.uuid = uuid_of(2), .group = 1, .returned = true},
            MovedRecord{.uuid = uuid_of(1), .group = 1},
            NumberRecord{.uuid = uuid_of(1), .number = 7},
            OwnerRecord{.uuid = uuid_of(1), .user = 7},
            KeyRecord{.uuid = uuid_of(1), .sequence = 1, .key = key()},
            NameRecord{.uuid = uuid_of(1), .name = "n"},
            ResetRecord{.uuid = uuid_of(1), .sequence = 1, .given_up = Bytes(32)},
            TombstoneRecord{.uuid = uuid_of(1)},
            TombstoneRecord{.uuid = uuid_of(1), .reason = TombstoneRecord::Reason::migrated},
            FreshnessRecord{.counter = 1},
            CertifierRecord{.id = 1, .detail = Bytes(3)},
        };
        unsigned met = 0;
        for (const Record& first : changes) {
            for (const Record& second : changes) {
                Registry registry = with_group();
                must(registry.apply(GroupRecord{.id = 1, .uuid = uuid_of(101)}));
                must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
                must(registry.apply(TombstoneRecord{.uuid = uuid_of(2), .reason = TombstoneRecord::Reason::migrated}));
                Draft draft(&registry);
                must(draft.add(first));
                const bool follows = draft.add(second).has_value();
                met += follows ? 0 : 1;
                const SnapshotSize expected = draft.snapshot_size();
                must(registry.apply(first));
                if (follows) {
                    must(registry.apply(second));
                }
                CHECK((registry.snapshot_size() == expected));
            }
        }
        CHECK(met >= 20);
        const auto refused = [](const Record& first, const Record& second) {
            Registry registry = with_group();
            must(registry.apply(GroupRecord{.id = 1, .uuid = uuid_of(101)}));
            must(registry.apply(VtpmRecord{.uuid = uuid_of(1)}));
            Draft draft(&registry);
            must(draft.add(first));
            auto outcome = draft.add(second);
            REQUIRE_FALSE(outcome);
            return outcome.error().code;
        };
        const Record gone = GroupGoneRecord{.id = 1};
        CHECK(refused(gone, VtpmRecord{.uuid = uuid_of(5), .group = 1}) == Errc::not_found);
        CHECK(refused(gone, MovedRecord{.uuid = uuid_of(1), .group = 1}) == Errc::not_found);
        CHECK(refused(gone, CertifierRecord{.id = 1, .detail = Bytes(1)}) == Errc::not_found);
        CHECK(refused(gone, gone) == Errc::not_found);
        CHECK(refused(VtpmRecord{.uuid = uuid_of(5), .group = 1}, gone) == Errc::busy);
        CHECK(refused(MovedRecord{.uuid = uuid_of(1), .group = 1}, gone) == Errc::busy);
        const Record dead = TombstoneRecord{.uuid = uuid_of(1)};
        CHECK(refused(dead, dead) == Errc::tombstone);
        CHECK(refused(dead, NameRecord{.uuid = uuid_of(1), .name = "n"}) == Errc::tombstone);
        CHECK(refused(dead, KeyRecord{.uuid = uuid_of(1), .sequence = 1, .key = key()}) == Errc::tombstone);
        const Record made = VtpmRecord{.uuid = uuid_of(5)};
        CHECK(refused(made, made) == Errc::exists);
        CHECK(refused(KeyRecord{.uuid = uuid_of(1), .sequence = 1, .key = key()},
                      KeyRecord{.uuid = uuid_of(1), .sequence = 1, .key = key()}) == Errc::busy);
        CHECK(refused(GroupRecord{.id = 2, .uuid = uuid_of(102)}, GroupRecord{.id = 3, .uuid = uuid_of(102)}) ==
              Errc::exists);
    }

    TEST_CASE("rules: what is taken at replay and never written") {
        Registry registry = with_group();
        const Record gone = TombstoneRecord{.uuid = uuid_of(1)};
        CHECK(check(registry, gone, Occasion::replay));
        CHECK(check(registry, gone, Occasion::write).error().code == Errc::not_found);
        must(registry.apply(gone));
        const Record name = NameRecord{.uuid = uuid_of(1), .name = "n"};
        CHECK(check(registry, name, Occasion::replay));
        CHECK(check(registry, name, Occasion::write).error().code == Errc::tombstone);
        const Record back = VtpmRecord{.uuid = uuid_of(2), .returned = true};
        CHECK(check(registry, back, Occasion::replay));
        CHECK(check(registry, back, Occasion::write).error().code == Errc::tombstone);
    }

    TEST_CASE(
        "rules: what can come to more than seven eighths is not let in; the rest of the room is for those inside") {
        const Admission a{.room = 8000};
        using enum Admission::Kind;
        const SnapshotSize now{.now = 3000, .most = 6900};
        CHECK(a.admits(now, {.now = 3010, .most = 7000}, registers));
        CHECK_FALSE(a.admits(now, {.now = 3010, .most = 7001}, registers));
        CHECK(a.admits(now, {.now = 3010, .most = 7750}, changes)); // a group's keys
        CHECK_FALSE(a.admits(now, {.now = 3010, .most = 7751}, changes));
        CHECK(a.admits(now, {.now = 6900, .most = 6900}, changes)); // saves
        // Of an older program, over the limit: no more, but all that makes it smaller or leaves it as it is.
        const SnapshotSize over{.now = 7700, .most = 9000};
        CHECK(a.admits(over, {.now = 7750, .most = 9000}, changes));
        CHECK_FALSE(a.admits(over, {.now = 7751, .most = 9000}, changes));
        const SnapshotSize full{.now = 7990, .most = 9000};
        CHECK(a.admits(full, full, changes));
        CHECK_FALSE(a.admits(full, {.now = 7991, .most = 9000}, changes));
        CHECK(a.admits(full, {.now = 7999, .most = 8990}, changes)); // a deletion
    }

    TEST_CASE("registry: a group's number is not used again while the registry lives") {
        Registry registry = with_group();
        CHECK(registry.next_group_id() == 1);
        must(registry.apply(GroupRecord{.id = 1, .uuid = uuid_of(101)}));
        must(registry.apply(GroupGoneRecord{.id = 1}));
        CHECK(registry.next_group_id() == 2);
    }

    TEST_CASE("registry: which tombstones retire") {
        Registry registry = with_group();
        must(registry.apply(FreshnessRecord{.counter = 5}));
        using Reason = TombstoneRecord::Reason;
        for (unsigned n = 1; n <= 4; ++n) {
            must(registry.apply(VtpmRecord{.uuid = uuid_of(n)}));
        }
        must(registry.apply(KeyRecord{.uuid = uuid_of(1), .sequence = 1, .key = key()}));
        must(registry.apply(KeyRecord{.uuid = uuid_of(3), .sequence = 1, .key = key()}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(1), .when = 10}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(2), .when = 11}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(4), .reason = Reason::migrated, .when = 12}));
        must(registry.apply(FreshnessRecord{.counter = 6}));
        must(registry.apply(TombstoneRecord{.uuid = uuid_of(3), .when = 13}));
        auto retirable = [](const Registry& r, std::uint64_t hardware, std::uint64_t budget) {
            std::vector<unsigned> out;
            for (const Uuid& u : r.retirable({.hardware = hardware, .budget = budget})) {
                out.push_back(std::to_integer<unsigned>(u.bytes[15]));
            }
            std::ranges::sort(out);
            return out;
        };
        using Numbers = std::vector<unsigned>;
        CHECK(retirable(registry, 0, 0) == Numbers{2}); // it never had a state; the counter says nothing
        CHECK(retirable(registry, 5, 0) == Numbers{2}); // copies from before the deletion are still accepted
        CHECK(retirable(registry, 6, 0) == Numbers{1, 2});
        CHECK(retirable(registry, 7, 0) == Numbers{1, 2, 3}); // never that of one that migrated away
        CHECK(retirable(registry, 7, 1'000) == Numbers{2});   // there is room for the others
        const std::uint64_t all = registry.tombstone_bytes();
        CHECK(retirable(registry, 7, all / 4 * 3 - 1) == Numbers{1, 2, 3}); // down to half of it
        // After a restart: those are as old as the store is.
        Registry again;
        registry.snapshot([&](const Record& r) { must(again.apply(r)); });
        again.replayed();
        CHECK(retirable(again, 6, 0).empty());
        CHECK(retirable(again, 7, 0) == Numbers{1, 2, 3});
        // Retired, they leave nothing behind.
        const auto gone = again.retirable({.hardware = 7, .budget = 0});
        unsigned tombstones = 0;
        again.snapshot([&](const Record& r) { tombstones += std::holds_alternative<TombstoneRecord>(r) ? 1 : 0; },
                       gone);
        CHECK(tombstones == 1);
        again.retire(gone);
        CHECK(again.tombstone_count() == 1);
        CHECK(again.snapshot_size().now == real_size(again));
        must(again.apply(VtpmRecord{.uuid = uuid_of(1)}));
    }
}

} // namespace manager_registry_rules_test
