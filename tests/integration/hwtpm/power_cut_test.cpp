// Power cut between any two steps of what changes the store, on a real TPM and a disk that lose it together: the store opens
// afterwards with all that was acknowledged, and the TPM holds one counter for it.
#include "host.hpp"

#include <cstdlib>
#include <random>

namespace power_cut_test {

using namespace vtpmd;
using manager::FreshnessPolicy;
using test::FaultDisk;
using test::Host;
using Loss = FaultDisk::Loss;
using Mode = FreshnessPolicy::Mode;

namespace {

Uuid vtpm() {
    Uuid u;
    u.bytes[0] = std::byte{0xaa};
    return u;
}

/// The distance from one cut to the next. swtpm makes an RSA key whenever it starts a TPM 1.2, which it does twice for each
/// cut: there a run takes every third step, and another third each time.
std::uint64_t step_of(TpmVersion version) { return version == TpmVersion::tpm12 ? 3 : 1; }

/// Where a run begins below `step`: VTPMD_SEED repeats it.
std::uint64_t first_of(std::uint64_t step) {
    const char* seed = std::getenv("VTPMD_SEED");
    return (seed != nullptr ? std::strtoull(seed, nullptr, 10) : std::random_device{}()) % step;
}

/// Runs `work` from `before` again and again, with power cut a step later each time, first at the TPM's steps, then at the
/// disk's, until it goes through; `after_cut` looks at the host once the power is back. Returns how many steps there are.
template <typename Work, typename Check>
std::uint64_t cut_everywhere(Host& host, const Host::Copy& before, Work work, Check after_cut) {
    std::uint64_t steps = 0;
    const std::uint64_t step = step_of(host.version());
    const std::uint64_t first = first_of(step);
    CAPTURE(first); // as VTPMD_SEED, it begins there again
    for (const bool at_disk : {false, true}) {
        for (std::uint64_t at = first;; at += step) {
            REQUIRE(at < 2000);
            INFO("power cut at ", std::string(at_disk ? "disk operation " : "TPM moment "), at);
            host.put_back(before);
            if (at_disk) {
                host.cut_at_disk(at);
            } else {
                host.cut_at_tpm(at);
            }
            work();
            (void)host.off();
            const bool went = host.power_went();
            host.power_cycle(at % 2 == 0 ? Loss::all : Loss::none);
            after_cut();
            if (!went) {
                break;
            }
            steps += step;
        }
    }
    return steps;
}

/// Opens, or makes it where the creation was cut short, as an operator would.
void open_or_create(Host& host) {
    if (auto again = host.start(true); !again) {
        CHECK_MESSAGE(again.error().code == Errc::exists, again.error().message);
        REQUIRE(host.start());
    }
}

void creation(TpmVersion version) {
    Host host(version);
    const Host::Copy before = host.copy();
    const std::uint64_t steps = cut_everywhere(
        host, before, [&] { (void)host.start(true); },
        [&] {
            open_or_create(host);
            REQUIRE(host.enrol(vtpm()));
            REQUIRE(host.off());
            CHECK(host.counters_in_tpm() == 1);
        });
    CHECK(steps > 30);
}

/// A store with a vTPM whose last save had the mark 1 or higher, the next checkpoint two saves away.
unsigned begin(Host& host) {
    REQUIRE(host.start(true));
    REQUIRE(host.enrol(vtpm()));
    std::vector<Bytes> disks;
    for (unsigned mark = 1; host.vault->journal_counters().checkpoints < 2; ++mark) {
        REQUIRE(mark < 3000);
        disks.push_back(host.disk->content());
        REQUIRE(host.save(vtpm(), mark));
    }
    REQUIRE(disks.size() > 4);
    const unsigned mark = static_cast<unsigned>(disks.size()) - 3;
    host.power_cycle(Loss::all);
    host.put_back_disk(disks[mark]);
    return mark;
}

void saves(TpmVersion version, Mode mode) {
    Host host(version);
    const unsigned first = begin(host);
    const Host::Copy before = host.copy();
    host.options.freshness.mode = mode;
    unsigned acknowledged = 0;
    bool checkpoint = false;
    const std::uint64_t steps = cut_everywhere(
        host, before,
        [&] {
            acknowledged = first;
            if (!host.start()) {
                return;
            }
            for (unsigned mark = first + 1; mark < first + 6; ++mark) {
                if (host.save(vtpm(), mark)) {
                    acknowledged = mark;
                }
            }
            checkpoint = checkpoint || host.vault->journal_counters().checkpoints > 0;
        },
        [&] {
            REQUIRE(host.start());
            const unsigned found = host.load(vtpm());
            CHECK(found >= acknowledged);
            CHECK(found <= first + 5);
        });
    CHECK(checkpoint);
    CHECK(steps > 30);
    CHECK(host.counters_in_tpm() == 1);
}

void policy_change(TpmVersion version) {
    Host host(version);
    const unsigned first = begin(host);
    const Host::Copy before = host.copy();
    const auto from = host.options.seal_pcrs;
    const auto to = host.pcrs("4");
    unsigned old_ones = 0;
    unsigned new_ones = 0;
    const std::uint64_t steps = cut_everywhere(
        host, before,
        [&] {
            host.options.seal_pcrs = to;
            (void)host.start();
        },
        [&] {
            host.options.seal_pcrs.reset(); // as it is sealed
            REQUIRE(host.start());
            const bool is_new = host.vault->sealed_to() == to;
            CHECK((is_new || host.vault->sealed_to() == from));
            (is_new ? new_ones : old_ones) += 1;
            CHECK(host.load(vtpm()) == first);
        });
    CHECK(steps > 20);
    CHECK(old_ones > 0);
    CHECK(new_ones > 0);
}

void deletion(TpmVersion version) {
    Host host(version);
    (void)begin(host);
    const Host::Copy before = host.copy();
    bool deleted = false;
    (void)cut_everywhere(
        host, before,
        [&] {
            deleted = false;
            if (host.start()) {
                deleted =
                    host.loop.run(host.vault->remove(vtpm(), manager::TombstoneRecord::Reason::deleted)).has_value();
            }
        },
        [&] {
            REQUIRE(host.start());
            const bool gone = host.vault->registry().find(vtpm()) == nullptr;
            CHECK(gone == (host.vault->registry().tombstone(vtpm()) != nullptr));
            if (deleted) {
                CHECK(gone);
                REQUIRE(host.off());
                host.put_back_disk(before.disk); // a copy from before does not bring it back
                CHECK(host.start().error().code == Errc::rollback);
            }
        });
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: power cut between any two steps of a creation") { creation(TpmVersion::tpm20); }
    TEST_CASE("2.0: power cut between any two steps of saves, counter steps and a checkpoint") {
        saves(TpmVersion::tpm20, Mode::strict);
        saves(TpmVersion::tpm20, Mode::window);
    }
    TEST_CASE("2.0: power cut between any two steps of a policy change") { policy_change(TpmVersion::tpm20); }
    TEST_CASE("2.0: power cut between any two steps of a deletion") { deletion(TpmVersion::tpm20); }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: power cut between any two steps of a creation") { creation(TpmVersion::tpm12); }
    TEST_CASE("1.2: power cut between any two steps of saves, counter steps and a checkpoint") {
        saves(TpmVersion::tpm12, Mode::strict);
        saves(TpmVersion::tpm12, Mode::window);
    }
    TEST_CASE("1.2: power cut between any two steps of a policy change") { policy_change(TpmVersion::tpm12); }
    TEST_CASE("1.2: power cut between any two steps of a deletion") { deletion(TpmVersion::tpm12); }
}

} // namespace power_cut_test
