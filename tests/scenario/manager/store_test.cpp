// The manager's store with the real journal, on a disk and a TPM that fail on purpose.
#include "manager_machine.hpp"

#include "util/text.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace manager_store_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::Machine;
using test::FaultDisk;
using Mode = FreshnessPolicy::Mode;
using Loss = FaultDisk::Loss;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xaa};
    u.bytes[15] = static_cast<std::byte>(n);
    u.bytes[14] = static_cast<std::byte>(n >> 8U);
    return u;
}

struct TemporaryDirectory {
    TemporaryDirectory() {
        std::string pattern = std::filesystem::temp_directory_path() / "vtpmd-test-XXXXXX";
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path = pattern;
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path); }
    std::string path;
};

/// Every way in which the last writes can be lost.
struct CrashKind {
    Loss loss;
    std::size_t parameter;
};
constexpr CrashKind crash_kinds[] = {{Loss::all, 0},      {Loss::none, 0},    {Loss::prefix, 1},
                                     {Loss::prefix, 511}, {Loss::sectors, 1}, {Loss::sectors, 2}};

} // namespace

TEST_SUITE("manager store") {
    TEST_CASE("a new store, restarts, and everything is there") {
        struct Case {
            Mode mode;
            TpmVersion hardware;
        };
        for (const auto& [mode, hardware] :
             {Case{Mode::window, TpmVersion::tpm20}, Case{Mode::window, TpmVersion::tpm12},
              Case{Mode::strict, TpmVersion::tpm20}, Case{Mode::strict, TpmVersion::tpm12},
              Case{Mode::off, TpmVersion::tpm20}}) {
            Machine m;
            m.tpm.version = hardware;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(1), TpmVersion::tpm12));
            REQUIRE(m.enrol(uuid_of(2)));
            CHECK(m.load(uuid_of(1)) == -1);
            REQUIRE(m.save(uuid_of(1), 7));
            REQUIRE(m.save(uuid_of(1), 8, hash_key_short));
            for (int boot = 0; boot < 3; ++boot) {
                REQUIRE(m.off());
                REQUIRE(m.open());
                CHECK(m.load(uuid_of(1)) == 8);
                CHECK(m.load(uuid_of(2)) == -1);
                CHECK(m.vault->registry().find(uuid_of(1))->version == TpmVersion::tpm12);
            }
            CHECK(m.tpm.counters.size() == (mode == Mode::off ? 0 : 1));
            CHECK(m.create().error().code == Errc::exists);
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(1)) == 8);
        }
    }

    TEST_CASE("20,000 vTPMs fit into the store that is made by default: what each of some thousands takes") {
        constexpr unsigned count = 2400;
        Machine m;
        m.options.size = std::uint64_t{2} << 20;
        m.options.freshness.mode = Mode::off;
        REQUIRE(m.create());
        for (unsigned n = 0; n < count; ++n) {
            REQUIRE(m.enrol(uuid_of(n)));
            REQUIRE(m.save(uuid_of(n), 1));
        }
        // The next checkpoint has all of them.
        const store::JournalCounters& journal = m.vault->journal_counters();
        const auto checkpoints = journal.checkpoints;
        for (unsigned n = 0; journal.checkpoints == checkpoints; ++n) {
            REQUIRE(n < 100'000);
            REQUIRE(m.save(uuid_of(n % count), static_cast<std::uint8_t>(n)));
        }
        const std::uint64_t each = journal.checkpoint_bytes / count;
        CHECK(each > sizeof(WrappedKey) / 2); // it is of them
        CHECK(each <= 200);
        // And so are they when all have all that they can have: up to 7/8 of a half of the store.
        const std::uint64_t most = m.vault->fill().reserved / count;
        CHECK(most > each);
        CHECK(most * 20'000 <= (manager::ManagerOptions().store_size / 2 - (std::uint64_t{256} << 10)) / 8 * 7);
        REQUIRE(m.off());
        REQUIRE(m.open());
        CHECK(m.vault->registry().vtpm_count() == count);
    }

    TEST_CASE("no store: says so; something else there: kept") {
        Machine m;
        auto none = m.open();
        REQUIRE(none.has_error());
        CHECK(none.error().code == Errc::not_found);
        CHECK(none.error().message.find("--create") != std::string::npos);

        Bytes foreign(600'000, std::byte{0x17});
        m.replace_disk(foreign);
        CHECK(m.create().error().code == Errc::exists);
        CHECK(m.disk->content() == foreign);
        CHECK(m.tpm.counters.empty()); // the counter made for it is taken back
    }

    TEST_CASE("creation with a crash at every step of the disk: done again, or complete") {
        bool reached_end = false;
        for (std::uint64_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 200);
            for (const CrashKind& kind : crash_kinds) {
                Machine m;
                m.tie_tpm_to_disk();
                m.die_at_disk(at);
                auto first = m.create();
                reached_end = first.has_value();
                m.crash(kind.loss, kind.parameter);
                INFO("crash at ", at);
                auto again = m.create();
                if (again.has_error()) {
                    CHECK(again.error().code == Errc::exists); // it was complete
                    REQUIRE(m.open());
                }
                CHECK(m.tpm.counters.size() == 1); // none that no superblock knows of
                REQUIRE(m.enrol(uuid_of(1)));
                REQUIRE(m.save(uuid_of(1), 5));
                REQUIRE(m.off());
                REQUIRE(m.open());
                CHECK(m.load(uuid_of(1)) == 5);
            }
        }
    }

    TEST_CASE("creation with a crash at every step of the TPM, before and after it happened") {
        bool reached_end = false;
        for (std::size_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 100);
            Machine m;
            m.die_at_tpm(at);
            auto first = m.create();
            reached_end = first.has_value();
            m.crash(Loss::all);
            INFO("crash at ", at);
            if (auto again = m.create(); again.has_error()) {
                CHECK(again.error().code == Errc::exists);
                REQUIRE(m.open());
            }
            CHECK(m.tpm.counters.size() == 1);
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.off());
            REQUIRE(m.open());
        }
    }

    TEST_CASE("a creation cut short that is taken up without freshness takes its counter out of the TPM") {
        bool reached_end = false;
        bool was_there = false;
        for (std::size_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 100);
            Machine m;
            m.die_at_tpm(at);
            reached_end = m.create().has_value();
            m.crash(Loss::all);
            if (reached_end) {
                break;
            }
            was_there = was_there || !m.tpm.counters.empty();
            m.options.freshness.mode = Mode::off;
            if (m.create()) {
                CHECK(m.tpm.counters.empty());
                REQUIRE(m.off());
                m.options.freshness.mode = Mode::window;
                m.options.accept_no_counter = true;
                REQUIRE(m.open());
                CHECK(m.tpm.counters.size() == 1);
            }
        }
        CHECK(was_there);
    }

    TEST_CASE("a reservation that somebody else took meanwhile: the counter is elsewhere, and found there") {
        for (TpmVersion version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            Machine m;
            m.tpm.version = version;
            m.tpm.after = [&m](std::string_view op) -> std::optional<Error> {
                if (op == "counter_reserve") {
                    m.tpm.counters[m.tpm.version == TpmVersion::tpm20 ? 0x01800000 : 0] = ++m.tpm.high_water;
                }
                return std::nullopt;
            };
            REQUIRE(m.create());
            m.tpm.after = nullptr;
            CHECK(m.tpm.counters.size() == 2);
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.tpm.counters.size() == 2);
        }
    }

    TEST_CASE("creation that fails for want of the TPM leaves no counter behind") {
        for (std::string_view step : {"identity", "random", "counter_reserve", "counter_create", "seal"}) {
            Machine m;
            m.tpm.before = [&](std::string_view op) -> std::optional<Error> {
                return op == step ? std::optional(make_error(Errc::tpm, "no")) : std::nullopt;
            };
            CHECK(m.create().has_error());
            CHECK(m.tpm.counters.empty());
            m.tpm.before = nullptr;
            CHECK(m.create());
        }
    }

    TEST_CASE("a creation cut short whose keys the TPM does not give out any more: done anew, or says what to remove") {
        int anew = 0;
        int told = 0;
        bool reached_end = false;
        for (std::uint64_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 200);
            Machine m;
            m.tie_tpm_to_disk();
            m.die_at_disk(at);
            reached_end = m.create().has_value();
            m.crash(Loss::none);
            m.tpm.sealed.clear();
            auto again = m.create();
            if (again) {
                ++anew;
                continue;
            }
            const bool complete = again.error().code == Errc::exists;
            const bool says = again.error().message.find("remove it, and create it again") != std::string::npos;
            CHECK((complete || says));
            told += says ? 1 : 0;
        }
        CHECK(anew > 0);
        CHECK(told > 0);
    }

    TEST_CASE("PCRs changed: named, everything kept, open again once they are back") {
        Machine m;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.save(uuid_of(1), 3));
        REQUIRE(m.off());
        auto before = m.disk->content();
        auto& pcr4 = m.tpm.pcrs[{hwtpm::HashAlg::sha256, 4}];
        Bytes was = std::exchange(pcr4, Bytes(32, std::byte{0xee}));
        auto refused = m.open();
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::pcr_mismatch);
        CHECK(refused.error().message.find("PCR 4") != std::string::npos);
        CHECK(refused.error().message.find("PCR 7") == std::string::npos);
        CHECK(m.disk->content() == before);
        CHECK(m.create().error().code == Errc::exists); // not even when asked to
        CHECK(m.disk->content() == before);
        m.tpm.pcrs[{hwtpm::HashAlg::sha256, 4}] = was;
        m.tpm.pcrs[{hwtpm::HashAlg::sha256, 9}] = Bytes(32, std::byte{0xee}); // not sealed to
        REQUIRE(m.open());
        CHECK(m.load(uuid_of(1)) == 3);
    }

    TEST_CASE("another TPM: refused, both named") {
        Machine m;
        REQUIRE(m.create());
        REQUIRE(m.off());
        m.tpm.sealed.clear();
        auto refused = m.open();
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::mismatch);
        CHECK(refused.error().message.find("fake TPM") != std::string::npos);
    }

    TEST_CASE("an old copy of the image put back is refused, naming the counter") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            Machine m;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.save(uuid_of(1), 1));
            REQUIRE(m.off());
            auto old = m.disk->content();
            REQUIRE(m.open());
            REQUIRE(m.save(uuid_of(1), 2));
            REQUIRE(m.off());
            auto current = m.disk->content();

            m.replace_disk(old);
            auto refused = m.open();
            REQUIRE(refused.has_error());
            CHECK(refused.error().code == Errc::rollback);
            std::uint64_t counter = m.tpm.counters.begin()->second;
            CHECK(refused.error().message.find(std::to_string(counter)) != std::string::npos);
            CHECK(m.disk->content() == old);

            m.replace_disk(current);
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(1)) == 2);
            REQUIRE(m.off());

            m.replace_disk(old);
            m.options.accept_counter = m.tpm.counters.begin()->second;
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(1)) == 1);
        }
    }

    TEST_CASE("a deleted vTPM stays deleted: tombstone, and no older copy") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            Machine m;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.save(uuid_of(1), 1));
            auto before = m.disk->content();
            REQUIRE(m.loop.run(m.vault->remove(uuid_of(1), TombstoneRecord::Reason::deleted)));
            CHECK(m.vault->registry().find(uuid_of(1)) == nullptr);
            CHECK(m.enrol(uuid_of(1)).error().code == Errc::tombstone);
            m.crash(Loss::all);
            auto after = m.disk->content();
            m.replace_disk(before);
            CHECK(m.open().error().code == Errc::rollback);
            m.replace_disk(after);
            REQUIRE(m.open());
            CHECK(m.vault->registry().tombstone(uuid_of(1)) != nullptr);
            CHECK(m.enrol(uuid_of(1)).error().code == Errc::tombstone);
        }
    }

    TEST_CASE("a vTPM that was reset stays reset: its key is nowhere in the image, and no older copy opens") {
        for (Mode mode : {Mode::window, Mode::strict, Mode::off}) {
            Machine m;
            m.options.freshness.mode = mode;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.loop.run(m.vault->reset(uuid_of(1)))); // nothing to reset
            CHECK(m.vault->registry().reset(uuid_of(1)) == nullptr);
            REQUIRE(m.enrol(uuid_of(2)));
            REQUIRE(m.save(uuid_of(1), 1));
            REQUIRE(m.save(uuid_of(2), 2));
            auto before = m.disk->content();
            REQUIRE(m.loop.run(m.vault->reset(uuid_of(1))));
            CHECK(m.load(uuid_of(1)) == -1);
            CHECK(m.vault->registry().find(uuid_of(1))->sequence == 2);
            m.crash(Loss::all);
            auto after = m.disk->content();
            // The half that had the key is given up: its own key cannot be made any more.
            constexpr std::size_t halves_at = 131'072;
            const std::size_t half = (after.size() - halves_at) / 2 / 4096 * 4096;
            std::size_t given_up = 0;
            for (std::size_t i = 0; i < 2; ++i) {
                const ByteView header = ByteView(after).subspan(halves_at + i * half, 512);
                given_up += std::ranges::all_of(header, [](std::byte b) { return b == std::byte{0}; }) ? 1 : 0;
            }
            CHECK(given_up == 1);
            m.replace_disk(before);
            if (mode == Mode::off) {
                REQUIRE(m.open());
                CHECK(m.load(uuid_of(1)) == 1); // as everything in an older copy, without freshness
            } else {
                CHECK(m.open().error().code == Errc::rollback);
            }
            m.replace_disk(after);
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(1)) == -1);
            CHECK(m.load(uuid_of(2)) == 2);
            REQUIRE(m.vault->registry().reset(uuid_of(1)) != nullptr);
            CHECK(m.vault->registry().reset(uuid_of(1))->given_up == Bytes(32, std::byte{1}));
            REQUIRE(m.save(uuid_of(1), 3));
            CHECK(m.vault->registry().find(uuid_of(1))->sequence == 3);
            REQUIRE(m.off());
            REQUIRE(m.open());
            CHECK(m.load(uuid_of(1)) == 3);
        }
    }
    TEST_CASE("a reset with a crash at every step of the disk: done once it was said, else done or not") {
        bool reached_end = false;
        for (std::uint64_t step = 0; !reached_end; ++step) {
            REQUIRE(step < 200);
            Machine m;
            REQUIRE(m.create());
            REQUIRE(m.enrol(uuid_of(1)));
            REQUIRE(m.save(uuid_of(1), 1));
            m.die_at_disk(step);
            m.tie_tpm_to_disk();
            auto done = m.loop.run(m.vault->reset(uuid_of(1)));
            reached_end = done.has_value() && !m.disk->dead();
            m.crash(crash_kinds[step % std::size(crash_kinds)].loss, 1);
            REQUIRE(m.open());
            const int found = m.load(uuid_of(1));
            CHECK((found == -1 || (found == 1 && !done)));
            REQUIRE(m.loop.run(m.vault->reset(uuid_of(1))));
            CHECK(m.load(uuid_of(1)) == -1);
            CHECK(m.vault->registry().reset(uuid_of(1))->given_up == Bytes(32, std::byte{1}));
            REQUIRE(m.save(uuid_of(1), 2));
        }
    }
    TEST_CASE("a crash at every step of the disk while vTPMs save: what was acknowledged is there") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            bool reached_end = false;
            for (std::uint64_t at = 0; !reached_end; ++at) {
                REQUIRE(at < 300);
                for (const CrashKind& kind : crash_kinds) {
                    Machine m;
                    m.options.freshness.mode = mode;
                    REQUIRE(m.create());
                    REQUIRE(m.enrol(uuid_of(1)));
                    m.tie_tpm_to_disk();
                    m.die_at_disk(at);
                    int acknowledged = -1;
                    int tried = -1;
                    reached_end = true;
                    for (int i = 0; i < 6 && reached_end; ++i) {
                        tried = i;
                        reached_end = m.save(uuid_of(1), static_cast<std::uint8_t>(i)).has_value();
                        if (reached_end) {
                            acknowledged = i;
                        }
                    }
                    m.crash(kind.loss, kind.parameter);
                    INFO("crash at ", at);
                    REQUIRE(m.open());
                    int found = m.load(uuid_of(1));
                    CHECK(found >= acknowledged);
                    CHECK(found <= tried);
                    REQUIRE(m.save(uuid_of(1), 99));
                    REQUIRE(m.off());
                    REQUIRE(m.open());
                    CHECK(m.load(uuid_of(1)) == 99);
                }
            }
        }
    }

    TEST_CASE("a crash at every step of a start: the next one succeeds") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            for (bool clean : {true, false}) {
                bool reached_end = false;
                for (std::size_t at = 0; !reached_end; ++at) {
                    REQUIRE(at < 100);
                    Machine m;
                    m.options.freshness.mode = mode;
                    REQUIRE(m.create());
                    REQUIRE(m.enrol(uuid_of(1)));
                    REQUIRE(m.save(uuid_of(1), 4));
                    if (clean) {
                        REQUIRE(m.off());
                    } else {
                        m.crash(Loss::all);
                    }
                    m.die_at_tpm(at);
                    reached_end = m.open().has_value();
                    m.crash(Loss::all);
                    INFO("crash at ", at);
                    REQUIRE(m.open());
                    CHECK(m.load(uuid_of(1)) == 4);
                }
            }
        }
    }

    TEST_CASE("64 vTPMs that save at once share batches") {
        Machine m;
        REQUIRE(m.create());
        for (unsigned i = 0; i < 64; ++i) {
            REQUIRE(m.enrol(uuid_of(i)));
        }
        auto before = m.vault->journal_counters();
        int done = 0;
        auto saver = [](Vault& vault, unsigned n, int& count) -> Task<bool> {
            for (unsigned i = 1; i <= 10; ++i) {
                SecretBytes key{ByteView(Bytes(hash_key_long, static_cast<std::byte>(i)))};
                auto saved = co_await vault.save_key(uuid_of(n), std::move(key));
                count += saved ? 1 : 0;
            }
            co_return true;
        };
        for (unsigned i = 0; i < 64; ++i) {
            (void)m.loop.start(saver(*m.vault, i, done));
        }
        m.loop.settle();
        CHECK(done == 640);
        auto after = m.vault->journal_counters();
        CHECK(after.records - before.records == 640);
        CHECK(after.batches - before.batches <= 20);
        REQUIRE(m.off());
        REQUIRE(m.open());
        for (unsigned i = 0; i < 64; ++i) {
            CHECK(m.load(uuid_of(i)) == 10);
        }
    }

    TEST_CASE("strict: an acknowledgement comes after the step, one step a batch") {
        Machine m;
        m.options.freshness.mode = Mode::strict;
        REQUIRE(m.create());
        for (unsigned i = 0; i < 16; ++i) {
            REQUIRE(m.enrol(uuid_of(i)));
        }
        std::uint64_t steps_before = m.vault->freshness().counters().steps;
        auto batches_before = m.vault->journal_counters().batches;
        struct Seen {
            int acknowledged = 0;
            bool ahead = false; // of the step
        } seen;
        auto saver = [](Machine& machine, unsigned n, Seen& s) -> Task<bool> {
            SecretBytes key{ByteView(Bytes(hash_key_long, std::byte{1}))};
            auto saved = co_await machine.vault->save_key(uuid_of(n), std::move(key));
            s.acknowledged += saved ? 1 : 0;
            s.ahead = s.ahead || machine.vault->registry().freshness() != machine.tpm.counters.begin()->second;
            co_return true;
        };
        for (unsigned i = 0; i < 16; ++i) {
            (void)m.loop.start(saver(m, i, seen));
        }
        m.loop.settle();
        CHECK(seen.acknowledged == 16);
        CHECK_FALSE(seen.ahead);
        CHECK(m.vault->freshness().counters().steps - steps_before ==
              m.vault->journal_counters().batches - batches_before);
        CHECK(m.vault->freshness().counters().steps - steps_before < 16);
    }

    TEST_CASE("strict: the counter gone for a while refuses saves, and service goes on when it is back") {
        Machine m;
        m.options.freshness.mode = Mode::strict;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.save(uuid_of(1), 1));
        m.tpm.before = [](std::string_view op) -> std::optional<Error> {
            return op.starts_with("counter") ? std::optional(make_error(Errc::timed_out, "no answer")) : std::nullopt;
        };
        CHECK(m.save(uuid_of(1), 2).error().code == Errc::unavailable);
        CHECK(m.save(uuid_of(1), 2).error().code == Errc::unavailable);
        m.tpm.before = nullptr;
        CHECK(m.save(uuid_of(1), 2).error().code == Errc::unavailable); // finishes what was owed
        REQUIRE(m.save(uuid_of(1), 2));
        REQUIRE(m.off());
        REQUIRE(m.open());
        CHECK(m.load(uuid_of(1)) == 2);
    }

    TEST_CASE("a full disk: the save is refused, nothing is lost, service goes on once there is room") {
        Machine m;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.save(uuid_of(1), 1));
        m.disk->plan = {.fail_at = m.disk->operations(), .fail_until = test::never, .error = Errc::no_space};
        auto refused = m.save(uuid_of(1), 2);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::unavailable); // a restart may find it: nobody knows
        auto asked = m.loop.run(m.vault->load_key(uuid_of(1)));
        REQUIRE(asked.has_error()); // so nobody is told
        CHECK(asked.error().code == Errc::unavailable);
        m.disk->plan = {};
        CHECK(m.load(uuid_of(1)) == 1);
        REQUIRE(m.save(uuid_of(1), 3));
        CHECK(m.load(uuid_of(1)) == 3);
    }

    TEST_CASE("a store that fills up refuses new vTPMs in time: those that are there go on, also after a restart") {
        Machine m;
        m.options.size = store::ManagerImage::min_size;
        REQUIRE(m.create());
        unsigned count = 0;
        for (;; ++count) {
            REQUIRE(count < 2000);
            if (auto enrolled = m.enrol(uuid_of(count)); !enrolled) {
                CHECK(enrolled.error().code == Errc::no_space);
                break;
            }
            REQUIRE(m.save(uuid_of(count), 1));
        }
        CHECK(count > 100);
        for (int round = 2; round < 5; ++round) {
            for (unsigned i = 0; i < count; ++i) {
                REQUIRE(m.save(uuid_of(i), static_cast<std::uint8_t>(round)));
            }
            REQUIRE(m.off());
            REQUIRE(m.open());
        }
        CHECK(m.load(uuid_of(0)) == 4);
        CHECK(m.load(uuid_of(count - 1)) == 4);
    }

    TEST_CASE("seal-pcrs changed on purpose: sealed anew, and the old PCRs do not matter any more") {
        Machine m;
        m.options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha256, .pcrs = {4}};
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.off());
        m.options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha256, .pcrs = {7}};
        REQUIRE(m.open());
        CHECK(m.loop.logged("sealed anew"));
        REQUIRE(m.off());
        m.options.seal_pcrs.reset(); // what the store has stays
        m.tpm.pcrs[{hwtpm::HashAlg::sha256, 4}] = Bytes(32, std::byte{0xee});
        REQUIRE(m.open());
        CHECK(m.vault->sealed_to().pcrs == std::vector<unsigned>{7});
        REQUIRE(m.off());
        m.tpm.pcrs[{hwtpm::HashAlg::sha256, 7}] = Bytes(32, std::byte{0xee});
        CHECK(m.open().error().code == Errc::pcr_mismatch);
    }

    TEST_CASE("sealing anew with a crash at every step: the store opens") {
        bool reached_end = false;
        for (std::uint64_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 100);
            for (const CrashKind& kind : crash_kinds) {
                Machine m;
                REQUIRE(m.create());
                REQUIRE(m.enrol(uuid_of(1)));
                REQUIRE(m.off());
                m.options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha256, .pcrs = {9}};
                m.tie_tpm_to_disk();
                m.die_at_disk(at);
                reached_end = m.open().has_value();
                m.crash(kind.loss, kind.parameter);
                INFO("crash at ", at);
                REQUIRE(m.open());
                CHECK(m.vault->sealed_to().pcrs == std::vector<unsigned>{9});
                CHECK(m.vault->registry().find(uuid_of(1)) != nullptr);
            }
        }
    }

    TEST_CASE("freshness switched on later: the store gets a counter, level with its journal") {
        Machine m;
        m.options.freshness.mode = Mode::strict;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.off());
        m.options.freshness.mode = Mode::off;
        REQUIRE(m.open());
        REQUIRE(m.save(uuid_of(1), 1));
        REQUIRE(m.off());
        m.options.freshness.mode = Mode::window; // the counter stood still meanwhile, and so did the journal's value
        REQUIRE(m.open());
        CHECK(m.tpm.counters.size() == 1);
        REQUIRE(m.off());

        Machine fresh;
        fresh.options.freshness.mode = Mode::off;
        REQUIRE(fresh.create());
        REQUIRE(fresh.off());
        fresh.options.freshness.mode = Mode::window;
        auto refused = fresh.open();
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::rollback);
        CHECK(refused.error().message.find("--accept-counter=none") != std::string::npos);
        CHECK(fresh.tpm.counters.empty());
        fresh.options.accept_no_counter = true;
        REQUIRE(fresh.open());
        REQUIRE(fresh.off());
        CHECK(fresh.open().error().code == Errc::usage); // the word does not stay
        fresh.options.accept_no_counter = false;
        REQUIRE(fresh.open());
        REQUIRE(fresh.enrol(uuid_of(2)));
        REQUIRE(fresh.off());
        CHECK(fresh.tpm.counters.size() == 1);
    }

    TEST_CASE("recovery file: opens without the seal, on the same TPM or another, and seals anew") {
        TemporaryDirectory dir;
        Machine m;
        m.options.recovery_file = dir.path + "/recovery";
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.save(uuid_of(1), 6));
        REQUIRE(m.off());
        CHECK((std::filesystem::status(m.options.recovery_file).permissions() & std::filesystem::perms::all) ==
              (std::filesystem::perms::owner_read | std::filesystem::perms::owner_write));
        SUBCASE("PCRs changed for good") {
            m.tpm.pcrs[{hwtpm::HashAlg::sha256, 7}] = Bytes(32, std::byte{0xee});
            REQUIRE(m.open());
            CHECK(m.tpm.counters.size() == 1); // its own
        }
        SUBCASE("a new board") {
            m.tpm.sealed.clear();
            m.tpm.counters.clear();
            m.tpm.identity = Bytes(3, std::byte{9});
            m.tpm.high_water = 3;
            CHECK(m.open().error().code == Errc::rollback); // nothing to compare with: that needs a word
            m.options.accept_no_counter = true;
            REQUIRE(m.open());
            CHECK(m.loop.logged("a new counter"));
            m.options.accept_no_counter = false;
        }
        CHECK(m.load(uuid_of(1)) == 6);
        REQUIRE(m.save(uuid_of(1), 7));
        REQUIRE(m.off());
        auto old = m.disk->content();
        m.options.recovery_file.clear();
        REQUIRE(m.open()); // by the TPM again
        CHECK(m.load(uuid_of(1)) == 7);
        REQUIRE(m.save(uuid_of(1), 8));
        REQUIRE(m.off());
        m.replace_disk(old);
        CHECK(m.open().error().code == Errc::rollback); // protected again
    }

    TEST_CASE("recovery file: another store's, a broken one, or none") {
        TemporaryDirectory dir;
        Machine m;
        REQUIRE(m.create());
        REQUIRE(m.off());
        m.options.recovery_file = dir.path + "/none";
        CHECK(m.open().error().code == Errc::usage); // made without one

        Machine with;
        with.options.recovery_file = dir.path + "/with";
        REQUIRE(with.create());
        REQUIRE(with.off());
        Machine other;
        other.options.recovery_file = dir.path + "/other";
        REQUIRE(other.create());
        REQUIRE(other.off());
        with.options.recovery_file = dir.path + "/other";
        CHECK(with.open().error().code == Errc::mismatch);
        std::ofstream(dir.path + "/broken") << "no key\n";
        with.options.recovery_file = dir.path + "/broken";
        CHECK(with.open().error().code == Errc::corrupt);
        with.options.recovery_file = dir.path + "/gone";
        CHECK(with.open().error().code == Errc::not_found);

        Machine refused; // never over a file that is there
        refused.options.recovery_file = dir.path + "/broken";
        CHECK(refused.create().error().code == Errc::exists);
    }

    TEST_CASE("a flipped bit anywhere in the image is an error or changes nothing, never less state") {
        Machine m;
        REQUIRE(m.create());
        REQUIRE(m.enrol(uuid_of(1)));
        REQUIRE(m.save(uuid_of(1), 1));
        REQUIRE(m.save(uuid_of(1), 2));
        REQUIRE(m.off());
        const Bytes whole = m.disk->content();
        const std::uint64_t counter = m.tpm.counters.begin()->second;
        for (std::size_t at = 0; at < whole.size(); at += whole[at] == std::byte{0} ? 997 : 61) {
            Bytes flipped = whole;
            flipped[at] ^= std::byte{0x10};
            m.replace_disk(std::move(flipped));
            m.tpm.counters.begin()->second = counter;
            auto opened = m.open();
            if (opened) {
                CHECK(m.load(uuid_of(1)) == 2);
                REQUIRE(m.off());
            }
        }
    }
}

} // namespace manager_store_test
