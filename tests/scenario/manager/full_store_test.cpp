// A store that is full, one that grows, and what was deleted from it: with the real journal and registry, on a disk and a TPM
// that fail on purpose.
#include "manager_machine.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>

namespace manager_full_store_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::Machine;
using test::FaultDisk;
using Mode = FreshnessPolicy::Mode;
using Loss = FaultDisk::Loss;
using Reason = TombstoneRecord::Reason;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xab};
    u.bytes[15] = static_cast<std::byte>(n);
    u.bytes[14] = static_cast<std::byte>(n >> 8U);
    u.bytes[13] = static_cast<std::byte>(n >> 16U);
    return u;
}

/// A small store, and what one does with vTPMs.
struct Host : Machine {
    Host() { options.size = store::ManagerImage::min_size; }
    Result<void> remove(unsigned n, Reason why = Reason::deleted) { return loop.run(vault->remove(uuid_of(n), why)); }
    Result<void> rename(unsigned n, std::string name) { return loop.run(vault->rename(uuid_of(n), std::move(name))); }
    Result<void> reset(unsigned n) { return loop.run(vault->reset(uuid_of(n))); }
    Result<void> save_one(unsigned n, std::uint8_t mark) { return save(uuid_of(n), mark); }
    Result<void> grow(std::uint64_t size) { return loop.run(vault->grow(size)); }
    /// vTPMs that fit, from `first` on.
    unsigned fill(unsigned first = 0) {
        for (unsigned n = first;; ++n) {
            if (auto made = enrol(uuid_of(n)); !made) {
                CHECK(made.error().code == Errc::no_space);
                CHECK(made.error().message.find("vtpmctl store grow") != std::string::npos);
                return n - first;
            }
        }
    }
};

} // namespace

TEST_SUITE("manager store") {
    TEST_CASE("full of vTPMs that have nothing yet: all of them get all that a vTPM can have, and go") {
        for (const Mode mode : {Mode::window, Mode::strict, Mode::off}) {
            Host m;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE_FALSE(m.loop.logged("over 80 %"));
            const unsigned count = m.fill();
            CHECK(count > 100);
            CHECK(m.loop.logged("over 80 %"));
            CHECK(m.vault->fill().nearly_full());
            auto everything = [&](std::uint8_t mark) {
                for (unsigned n = 0; n < count; ++n) {
                    CAPTURE(n);
                    REQUIRE(m.save_one(n, mark));
                    REQUIRE(m.rename(n, std::string(vtpm_name_limit, 'n')));
                    REQUIRE(m.reset(n));
                    REQUIRE(m.save_one(n, static_cast<std::uint8_t>(mark + 1)));
                }
            };
            everything(1);
            CHECK(m.vault->fill().used <= m.vault->fill().reserved);
            for (int boot = 0; boot < 2; ++boot) {
                REQUIRE(m.off());
                REQUIRE(m.open());
            }
            everything(5);
            CHECK(m.load(uuid_of(count - 1)) == 6);
            CHECK(m.fill(count) == 0);
            // Room comes back with deletions, and by growth.
            for (unsigned n = 0; n < 20; ++n) {
                REQUIRE(m.remove(n));
            }
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.fill(count) >= 15);
            REQUIRE(m.grow(store::ManagerImage::min_size * 2));
            CHECK_FALSE(m.vault->fill().nearly_full());
            CHECK(m.fill(2 * count) > count);
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(count - 1)) == 6);
            const Registry before(m.vault->registry()); // what is deleted leaves the vault's own
            for (const auto& [uuid, v] : before.vtpms()) {
                REQUIRE(m.loop.run(m.vault->remove(uuid, Reason::deleted)));
            }
            REQUIRE(m.off());
            REQUIRE(m.open());
        }
    }

    TEST_CASE("full of groups' CAs, of names, of tombstones: saves, deletes, stops, starts, grows") {
        enum class Kind { certifier, group, tombstone, away };
        for (const Kind kind : {Kind::certifier, Kind::group, Kind::tombstone, Kind::away}) {
            CAPTURE(static_cast<int>(kind));
            Host m;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(0)));
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.save_one(0, 1));
            Result<void> last{};
            unsigned n = 0;
            for (; last; ++n) {
                REQUIRE(n < 5000);
                switch (kind) {
                case Kind::certifier: // ever larger
                    last = m.loop.run(m.vault->keep_certifier(0, Bytes(1000 + 500 * n)));
                    break;
                case Kind::group:
                    last = m.loop.run(m.vault->create_group(1 + n, uuid_of(60'000 + n), Bytes(1500)));
                    break;
                case Kind::tombstone:
                case Kind::away:
                    last = m.enrol(uuid_of(10 + n));
                    if (last && kind == Kind::tombstone) { // of vTPMs that had a state: they stay for a while
                        last = m.save_one(10 + n, 1);
                    }
                    if (last) {
                        last = m.remove(10 + n, kind == Kind::away ? Reason::migrated : Reason::deleted);
                    }
                    if (kind == Kind::tombstone && n == 2500) { // those retire
                        last = make_error(Errc::no_space, "never");
                    }
                    break;
                }
            }
            CHECK(last.error().code == Errc::no_space);
            CHECK(n > 10);
            auto works = [&] {
                REQUIRE(m.save_one(0, 7));
                REQUIRE(m.save_one(1, 8));
                REQUIRE(m.rename(1, "a name"));
                REQUIRE(m.reset(1));
                REQUIRE(m.save_one(1, 9));
            };
            works();
            REQUIRE(m.off());
            REQUIRE(m.open());
            works();
            REQUIRE(m.remove(1));
            REQUIRE(m.grow(store::ManagerImage::min_size * 4));
            REQUIRE(m.enrol(uuid_of(5)));
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(0)) == 7);
            if (kind == Kind::away) { // never retired
                CHECK(m.vault->registry().tombstone_count() >= n - 1);
            }
        }
    }

    TEST_CASE("tombstones of vTPMs that never had a state retire with the next checkpoint") {
        for (const Mode mode : {Mode::window, Mode::strict, Mode::off}) {
            Host m;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(0)));
            REQUIRE(m.save_one(0, 1));
            for (unsigned n = 1; n < 3000; ++n) {
                REQUIRE(m.enrol(uuid_of(n)));
                REQUIRE(m.remove(n));
            }
            CHECK(m.vault->registry().tombstone_count() < 200);
            CHECK(m.load(uuid_of(0)) == 1);
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.vault->registry().tombstone_count() < 200);
            REQUIRE(m.enrol(uuid_of(3000)));
        }
    }

    // By hand with VTPMD_PAIRS=1000000 (CONTRIBUTING.md).
    TEST_CASE("created and deleted again and again: a store of the default size goes on serving") {
        const char* wanted = std::getenv("VTPMD_PAIRS");
        const unsigned pairs = wanted != nullptr ? static_cast<unsigned>(std::stoul(wanted)) : 1000;
        Host m;
        m.options.size = std::uint64_t{16} * 1024 * 1024;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(0)));
        REQUIRE(m.save_one(0, 1));
        std::uint64_t most_tombstones = 0, most_used = 0;
        for (unsigned n = 1; n <= pairs; ++n) {
            REQUIRE(m.enrol(uuid_of(n)));
            if (n % 10 == 0) {
                REQUIRE(m.save_one(n, 1));
            }
            REQUIRE(m.remove(n));
            if (n % 1000 == 0) {
                most_tombstones = std::max<std::uint64_t>(most_tombstones, m.vault->registry().tombstone_count());
                most_used = std::max(most_used, m.vault->fill().used);
                REQUIRE(m.save_one(0, static_cast<std::uint8_t>(n / 1000)));
            }
        }
        MESSAGE(pairs, " pairs: at most ", most_tombstones, " tombstones, ", most_used, " bytes used of ",
                m.vault->fill().limit);
        CHECK(most_used < m.vault->fill().limit / 4);
        REQUIRE(m.off());
        REQUIRE(m.open());
        REQUIRE(m.enrol(uuid_of(pairs + 1)));
        CHECK(m.load(uuid_of(0)) == static_cast<std::uint8_t>(pairs / 1000));
    }

    TEST_CASE("tombstones of vTPMs with a state retire only once no copy from before is accepted") {
        Host m;
        m.options.freshness.mode = Mode::window;
        REQUIRE(m.create());
        std::vector<Bytes> before; // copies of the store in which a vTPM was alive
        for (unsigned n = 1; n < 1200; ++n) {
            REQUIRE(m.enrol(uuid_of(n)));
            REQUIRE(m.save_one(n, 1));
            if (n % 300 == 1) {
                before.push_back(m.disk->content());
            }
            REQUIRE(m.remove(n));
        }
        CHECK(m.vault->registry().tombstone_count() < 500);
        CHECK(m.vault->registry().tombstone(uuid_of(1)) == nullptr); // the oldest
        CHECK(m.vault->registry().tombstone(uuid_of(1199)) != nullptr);
        CHECK(m.enrol(uuid_of(1199)).error().code == Errc::tombstone);
        REQUIRE(m.off());
        const Bytes now = m.disk->content();
        for (const Bytes& copy : before) {
            m.replace_disk(copy);
            CHECK(m.open().error().code == Errc::rollback);
        }
        m.replace_disk(now);
        REQUIRE(m.open());
    }

    TEST_CASE("without freshness no tombstone of a vTPM that had a state retires") {
        Host m;
        m.options.freshness.mode = Mode::off;
        m.options.size = store::ManagerImage::min_size * 2;
        REQUIRE(m.create());
        for (unsigned n = 1; n < 600; ++n) {
            REQUIRE(m.enrol(uuid_of(n)));
            REQUIRE(m.save_one(n, 1));
            REQUIRE(m.remove(n));
        }
        CHECK(m.vault->registry().tombstone_count() == 599);
    }

    TEST_CASE("a deleted vTPM's key is gone from the store at once") {
        for (const Mode mode : {Mode::window, Mode::strict, Mode::off}) {
            for (const bool had_state : {true, false}) {
                Host m;
                m.options.freshness.mode = mode;
                REQUIRE(m.create());
                REQUIRE(m.enrol(uuid_of(1)));
                if (had_state) {
                    REQUIRE(m.save_one(1, 1));
                }
                const Bytes then = m.disk->content();
                const auto checkpoints = m.vault->journal_counters().checkpoints;
                REQUIRE(m.remove(1));
                CHECK(m.vault->journal_counters().checkpoints - checkpoints == (had_state ? 1 : 0));
                if (!had_state) {
                    continue;
                }
                // The half that had it has no header any more, so its own key cannot be made.
                const Bytes left = m.disk->after_crash(Loss::all);
                constexpr std::size_t halves_at = 131'072;
                const std::size_t half = (left.size() - halves_at) / 2;
                unsigned given_up = 0;
                for (const std::size_t at : {halves_at, halves_at + half}) {
                    const bool was = std::to_integer<int>(then[at]) != 0;
                    const bool is = std::to_integer<int>(left[at]) != 0;
                    given_up += was && !is ? 1 : 0;
                }
                CHECK(given_up == 1);
            }
        }
    }

    TEST_CASE("vTPMs deleted at once share the checkpoints that forget their keys") {
        Host m;
        m.options.freshness.mode = Mode::off; // no step of the counter between them
        REQUIRE(m.create());
        constexpr unsigned count = 40;
        for (unsigned n = 0; n < count; ++n) {
            REQUIRE(m.enrol(uuid_of(n)));
            REQUIRE(m.save_one(n, 1));
        }
        const auto checkpoints = m.vault->journal_counters().checkpoints;
        std::vector<std::shared_ptr<fakes::Started<Result<void>>>> removing;
        for (unsigned n = 0; n < count; ++n) {
            removing.push_back(m.loop.start(m.vault->remove(uuid_of(n), Reason::deleted)));
        }
        for (const auto& r : removing) {
            REQUIRE(m.loop.wait(*r));
            CHECK(r->value->has_value());
        }
        CHECK(m.vault->registry().vtpm_count() == 0);
        CHECK(m.vault->journal_counters().checkpoints - checkpoints < count);
    }

    TEST_CASE(
        "power goes at every step of the disk over creation, deletion, retirement and growth: what was said holds") {
        bool reached_end = false;
        for (std::uint64_t step = 0; !reached_end; step += 3) {
            REQUIRE(step < 6000);
            Host m;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(0)));
            REQUIRE(m.save_one(0, 1));
            for (unsigned n = 1; n < 120; ++n) { // the half is nearly full
                REQUIRE(m.save_one(0, 1));
            }
            m.die_at_disk(step);
            m.tie_tpm_to_disk();
            std::set<unsigned> there;
            std::set<unsigned> gone;
            unsigned n = 1;
            for (; n < 12 && !m.disk->dead(); ++n) {
                if (m.enrol(uuid_of(n))) {
                    there.insert(n);
                }
                if (n % 2 == 0 && m.save_one(n, 2) && n % 4 == 0 && m.remove(n)) {
                    there.erase(n);
                    gone.insert(n);
                } else if (n % 4 == 0) {
                    there.erase(n); // nobody knows
                }
                if (n == 6) {
                    (void)m.grow(store::ManagerImage::min_size + 65'536);
                }
            }
            reached_end = !m.disk->dead();
            const auto kind = step % 2 == 0 ? Loss::all : Loss::sectors;
            m.crash(kind, static_cast<std::size_t>(step));
            CAPTURE(step);
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(0)) == 1);
            for (const unsigned i : there) {
                CAPTURE(i);
                CHECK(m.vault->registry().find(uuid_of(i)) != nullptr);
            }
            for (const unsigned i : gone) {
                CHECK(m.vault->registry().find(uuid_of(i)) == nullptr);
            }
            REQUIRE(m.enrol(uuid_of(500)));
            REQUIRE(m.remove(500));
            REQUIRE(m.off());
            REQUIRE(m.open());
        }
    }

    TEST_CASE("changes that meet: one is refused, what was said holds, and the store opens") {
        // Groups are deleted while vTPMs are made in them, moved to them, and their CAs are kept.
        Host m;
        m.options.size = 1 << 20;
        REQUIRE(m.create());
        unsigned refused = 0;
        for (unsigned round = 0; round < 30; ++round) {
            const GroupId group = 1 + round;
            REQUIRE(m.loop.run(m.vault->create_group(group, uuid_of(70'000 + round), Bytes(10))));
            m.vault->open_group(group, SecretBytes(Bytes(32, std::byte{3})));
            REQUIRE(m.enrol(uuid_of(1000 + round)));
            std::vector<std::function<Task<Result<void>>()>> calls{
                [&] { return m.vault->remove_group(group); },
                [&] { return m.vault->register_vtpm(uuid_of(2000 + round), TpmVersion::tpm20, group); },
                [&] { return m.vault->move_vtpm(uuid_of(1000 + round), group); },
                [&] { return m.vault->keep_certifier(group, Bytes(20)); },
                [&] { return m.vault->register_vtpm(uuid_of(2000 + round), TpmVersion::tpm20, 0); },
                [&] { return m.vault->register_numbered(uuid_of(3000 + round), TpmVersion::tpm12, 1 + round / 2); },
                [&] { return m.vault->remove(uuid_of(1000 + round), Reason::deleted); },
                [&] { return m.vault->rename(uuid_of(1000 + round), "n"); },
                [&] { return m.vault->remove_group(0); },
            };
            std::rotate(calls.begin(), calls.begin() + round % calls.size(), calls.end());
            std::vector<std::shared_ptr<fakes::Started<Result<void>>>> running;
            for (auto& call : calls) {
                running.push_back(m.loop.start(call()));
            }
            for (const auto& r : running) {
                REQUIRE(m.loop.wait(*r));
                refused += r->value->has_value() ? 0 : 1;
            }
            CHECK(m.vault->trouble().empty());
            if (round % 10 == 9) {
                const auto vtpms = m.vault->registry().vtpm_count();
                const auto groups = m.vault->registry().groups().size();
                REQUIRE(m.off());
                REQUIRE(m.open());
                CHECK(m.vault->registry().vtpm_count() == vtpms);
                CHECK(m.vault->registry().groups().size() == groups);
            }
        }
        CHECK(refused > 60);
    }

    TEST_CASE("two saves of one vTPM at once: one is kept and opens, the other is told so") {
        Host m;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        auto first = m.loop.start(m.vault->save_key(uuid_of(1), SecretBytes(Bytes(64, std::byte{1}))));
        auto second = m.loop.start(m.vault->save_key(uuid_of(1), SecretBytes(Bytes(64, std::byte{2}))));
        REQUIRE(m.loop.wait(*first));
        REQUIRE(m.loop.wait(*second));
        CHECK(first->value->has_value());
        REQUIRE_FALSE(second->value->has_value());
        CHECK(second->value->error().code == Errc::busy);
        CHECK(m.load(uuid_of(1)) == 1);
    }

    TEST_CASE("a save whose vTPM is moved at the same time: no key is kept that does not open") {
        for (const bool save_first : {true, false}) {
            Host m;
            REQUIRE(m.create());
            REQUIRE(m.loop.run(m.vault->create_group(1, uuid_of(70'000), Bytes(10))));
            m.vault->open_group(1, SecretBytes(Bytes(32, std::byte{3})));
            REQUIRE(m.enrol(uuid_of(1)));
            auto save = [&] {
                return m.loop.start(m.vault->save_key(uuid_of(1), SecretBytes(Bytes(64, std::byte{1}))));
            };
            auto first = save_first ? save() : m.loop.start(m.vault->move_vtpm(uuid_of(1), 1));
            auto second = save_first ? m.loop.start(m.vault->move_vtpm(uuid_of(1), 1)) : save();
            REQUIRE(m.loop.wait(*first));
            REQUIRE(m.loop.wait(*second));
            CHECK(first->value->has_value());
            CHECK_FALSE(second->value->has_value());
            CHECK(m.load(uuid_of(1)) == (save_first ? 1 : -1));
        }
    }
}

} // namespace manager_full_store_test
