// The invariants of an instance's image, with power going, or an operation failing, at every write, sync and allocation of
// a vTPM's life in turn.
#include "store/state_image.hpp"
#include "store/superblock.hpp"

#include "check.hpp"
#include "crash_images.hpp"
#include "every.hpp"
#include "fault_file.hpp"
#include "run_task.hpp"

#include <optional>

namespace store_state_image_fault_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::run_task;

namespace {

Bytes state_of(unsigned number) {
    const std::size_t sizes[] = {100, 5000, 300, 12'000, 4000};
    Bytes out(sizes[number % 5]);
    for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<std::byte>(number * 41 + i * 3);
    }
    return out;
}

constexpr unsigned saves = 5;

/// A vTPM's life, and what everybody believes at its end.
struct Life {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    ImageIdentity identity{parse_uuid("11111111-2222-3333-4444-555555555555").value(), TpmVersion::tpm20};

    bool created = false;
    SecretBytes record;           ///< what the manager keeps
    std::optional<unsigned> kept; ///< the save it is of
    bool guest_was_told = false;  ///< of any save
    std::vector<unsigned> failed;

    Result<std::unique_ptr<StateImage>> create(FaultDisk& disk) {
        return run_task(loop, StateImage::create(disk.open(), identity, log));
    }
    Result<std::unique_ptr<StateImage>> open(FaultDisk& disk) {
        return run_task(loop, StateImage::open(disk.open(), identity, log));
    }
    bool save(StateImage& image, unsigned number) {
        auto prepared = run_task(loop, image.prepare(state_of(number)));
        if (!prepared) {
            return false;
        }
        record = std::move(*prepared);
        kept = number;
        const bool told = run_task(loop, image.accept()).has_value();
        guest_was_told = guest_was_told || told;
        return told;
    }
    void live(FaultDisk& disk) {
        auto image = create(disk);
        created = image.has_value();
        for (unsigned i = 0; created && i < saves; ++i) {
            if (!save(**image, i)) {
                failed.push_back(i);
            }
        }
    }
    /// The invariants, on what is there after a crash.
    void check(const Bytes& content) {
        FaultDisk disk(content);
        auto image = open(disk);
        if (!image) {
            INFO(image.error().message);
            // Only a creation that was never finished may be unreadable, and it can be done again.
            REQUIRE_FALSE(created);
            REQUIRE(image.error().code == Errc::not_ours);
            REQUIRE(create(disk));
            return;
        }
        if (guest_was_told) {
            REQUIRE((*image)->had_state());
        }
        if (kept) {
            auto loaded = run_task(loop, (*image)->load(record.view()));
            REQUIRE(loaded);
            REQUIRE(loaded->equals(state_of(*kept)));
            REQUIRE((*image)->had_state());
        } else {
            REQUIRE_FALSE((*image)->had_state());
        }
        // And life goes on.
        REQUIRE(save(**image, 77));
        image = open(disk);
        REQUIRE(image);
        REQUIRE(run_task(loop, (*image)->load(record.view()))->equals(state_of(77)));
    }
};

std::uint64_t operations_of_a_life() {
    FaultDisk disk;
    Life life;
    life.live(disk);
    REQUIRE(life.failed.empty());
    REQUIRE(life.kept == saves - 1);
    return disk.operations();
}

} // namespace

TEST_SUITE("store") {
    TEST_CASE("superblock: writes that fail one after the other, torn, leave a whole copy") {
        constexpr SuperblockFormat format{"TESTMAGI", 1, 4096, "a test"};
        const auto generation_in = [&](const Bytes& content) {
            auto read = read_superblock(format, content, "disk");
            return read ? read->generation : 0;
        };
        // What each attempt does: works, its first copy fails, its second.
        for (unsigned plan = 0; plan < 3 * 3 * 3 * 3; ++plan) {
            for (const bool sync :
                 {false, true}) { // the write fails, or its sync: then it reads back, and is not there
                asio::io_context loop;
                FaultDisk disk;
                auto file = disk.open();
                Superblock superblock{.uuid = Uuid{}, .generation = 1, .payload = Bytes(100, std::byte{1})};
                Superblock copy = superblock;
                REQUIRE(run_task(loop, create_superblock(*file, format, std::move(copy))));
                std::size_t doubtful = 0;
                std::uint64_t told = 1; // the newest that was told written
                for (unsigned attempt = 0, left = plan; attempt < 4; ++attempt, left /= 3) {
                    disk.plan = {};
                    if (left % 3 != 0) {
                        disk.plan.fail_at = disk.operations() + 2 * (left % 3 - 1) + (sync ? 1 : 0);
                        disk.plan.fail_prefix = 700;
                    }
                    ++superblock.generation;
                    superblock.payload.assign(100 + attempt, static_cast<std::byte>(attempt));
                    copy = superblock;
                    const bool done =
                        run_task(loop, write_superblock(*file, format, std::move(copy), doubtful)).has_value();
                    CHECK(done == (left % 3 == 0));
                    told = done ? superblock.generation : told;
                    CHECK(generation_in(disk.after_crash(FaultDisk::Loss::all)) >= told);
                    CHECK(generation_in(disk.after_crash(FaultDisk::Loss::none)) >= told);
                }
            }
        }
    }

    TEST_CASE("state image: power goes at any operation: what was accepted is there, whole, and never 'no state'") {
        const std::uint64_t operations = operations_of_a_life();
        for (std::uint64_t at = 0; at < operations; ++at) {
            FaultDisk disk;
            disk.plan.die_at = at;
            Life before;
            before.live(disk);
            REQUIRE(disk.dead());
            for (const auto& crash : test::crash_images(disk)) {
                CAPTURE(at);
                CAPTURE(crash.how);
                Life after;
                after.created = before.created;
                after.record = before.record.clone();
                after.kept = before.kept;
                after.guest_was_told = before.guest_was_told;
                after.check(crash.content);
            }
        }
    }

    TEST_CASE("state image: any operation fails: an error, the old state stays, and saving works again") {
        const std::uint64_t operations = operations_of_a_life();
        for (std::uint64_t at = 0; at < operations; ++at) {
            for (const std::size_t prefix : {0, 100, 4096, 5000}) {
                for (const std::uint32_t seed : {0U, 3U}) {
                    CAPTURE(at);
                    CAPTURE(prefix);
                    CAPTURE(seed);
                    FaultDisk disk;
                    disk.plan = {.fail_at = at, .error = Errc::no_space, .fail_prefix = prefix, .drop_seed = seed};
                    Life life;
                    life.live(disk);
                    if (!life.created) {
                        // Tried again, it works: now or after a crash.
                        life.check(disk.after_crash(FaultDisk::Loss::all));
                        REQUIRE((life.open(disk) || life.create(disk)));
                        continue;
                    }
                    REQUIRE(life.failed.size() <= 1);
                    REQUIRE((life.kept == saves - 1 || life.failed == std::vector<unsigned>{saves - 1}));
                    life.check(disk.after_crash(FaultDisk::Loss::all));
                }
            }
        }
    }

    TEST_CASE("state image: a save fails at the last step before the crash: the old state is found") {
        const std::uint64_t operations = operations_of_a_life();
        for (std::uint64_t at = 6; at + 1 < operations; ++at) {
            FaultDisk disk;
            disk.plan = {.die_at = at + 2, .fail_at = at, .fail_prefix = 700, .drop_seed = 5};
            Life before;
            before.live(disk);
            if (!before.created) {
                continue;
            }
            for (const auto& crash : test::crash_images(disk, 2)) {
                CAPTURE(at);
                CAPTURE(crash.how);
                Life after;
                after.created = true;
                after.record = before.record.clone();
                after.kept = before.kept;
                after.guest_was_told = before.guest_was_told;
                after.check(crash.content);
            }
        }
    }

    TEST_CASE("state image: no byte can be flipped unnoticed") {
        constexpr std::size_t slots_at = 8192;
        constexpr std::size_t capacity = 256 * 1024;
        FaultDisk disk(Bytes(slots_at + 2 * capacity), true);
        Life life;
        life.live(disk);
        const Bytes good = disk.content();
        int flips = 0;
        int healed = 0;
        int refused = 0;
        auto flip = [&](std::size_t at, std::byte mask) {
            CAPTURE(at);
            Bytes bad = good;
            bad[at] ^= mask;
            FaultDisk damaged(std::move(bad), true);
            Life after;
            auto image = after.open(damaged);
            Result<SecretBytes> loaded =
                image ? run_task(after.loop, (*image)->load(life.record.view())) : Result<SecretBytes>(image.error());
            if (loaded) {
                REQUIRE(loaded->equals(state_of(*life.kept)));
                healed += after.lines.empty() ? 0 : 1;
            } else {
                const Errc code = loaded.error().code;
                REQUIRE((code == Errc::corrupt || code == Errc::mismatch || code == Errc::not_ours ||
                         code == Errc::version || code == Errc::rollback));
                REQUIRE(damaged.operations() == 0);
                ++refused;
            }
        };
        for (std::size_t at = 0; at < slots_at; at += at % 4096 < 80 || at % 4096 > 4060 ? 1 : 7 * test::every) {
            flip(at, static_cast<std::byte>(1U << (at % 8)));
            ++flips;
        }
        CHECK(healed == flips); // each is in one of two copies
        const int before = refused;
        for (std::size_t at = 0; at < 16384; at += at < 4200 ? test::every : 5 * test::every) {
            flip(slots_at + at, std::byte{0x10});
            flip(slots_at + capacity + at, std::byte{0x10});
        }
        CHECK(refused - before > 1000);
    }

    TEST_CASE("state image: an old copy put back is refused, naming what it holds") {
        FaultDisk disk;
        Life life;
        life.live(disk);
        auto image = life.open(disk).value();
        REQUIRE(run_task(life.loop, image->load(life.record.view())));
        const Bytes old = disk.content();
        REQUIRE(life.save(*image, 10));
        REQUIRE(life.save(*image, 11));
        FaultDisk restored(old);
        auto again = life.open(restored).value();
        auto loaded = run_task(life.loop, again->load(life.record.view()));
        REQUIRE_FALSE(loaded);
        CHECK(loaded.error().code == Errc::rollback);
        CHECK(loaded.error().message.find("save 4") != std::string::npos);
        CHECK(loaded.error().message.find("save 5") != std::string::npos);
        CHECK(again->had_state());
        CHECK(run_task(life.loop, again->prepare(state_of(1))).error().code == Errc::usage);
        CHECK(restored.operations() == 0);
    }

    TEST_CASE("state image: an empty image in place of one with state is a mismatch, not a fresh TPM") {
        FaultDisk disk;
        Life life;
        life.live(disk);
        FaultDisk empty;
        auto image = life.create(empty).value();
        auto loaded = run_task(life.loop, image->load(life.record.view()));
        REQUIRE_FALSE(loaded);
        CHECK(loaded.error().code == Errc::mismatch);
    }

    TEST_CASE("state image: the manager's answer was lost: either of the two saves can be loaded") {
        for (const bool taken : {false, true}) {
            FaultDisk disk;
            Life life;
            auto image = life.create(disk).value();
            REQUIRE(life.save(*image, 0));
            const SecretBytes pending = run_task(life.loop, image->prepare(state_of(1))).value();
            auto loaded = run_task(life.loop, image->load(taken ? pending.view() : life.record.view()));
            REQUIRE(loaded);
            CHECK(loaded->equals(state_of(taken ? 1 : 0)));
            CHECK(life.save(*image, 2));
            life.check(disk.content());
        }
    }

    TEST_CASE("state image: a block device with room for it, and one without") {
        Life life;
        FaultDisk small(Bytes(500'000), true);
        CHECK(life.create(small).error().code == Errc::no_space);
        FaultDisk device(Bytes(1 << 20), true);
        life.live(device);
        CHECK(life.kept == saves - 1);
        auto image = life.open(device).value();
        REQUIRE(run_task(life.loop, image->load(life.record.view())));
        CHECK(run_task(life.loop, image->prepare(Bytes(520'100))).error().code == Errc::too_large);
        CHECK(run_task(life.loop, image->prepare(Bytes(510'000))).has_value());
        FaultDisk used(Bytes(1 << 20, std::byte{0xff}), true);
        CHECK(life.create(used).error().code == Errc::exists);
    }

    TEST_CASE("state image: the largest state there can be goes in and comes out; one byte more is refused") {
        FaultDisk disk;
        Life life;
        auto image = life.create(disk).value();
        const Bytes largest(max_state_size, std::byte{0x3c});
        for (int i = 0; i < 3; ++i) {
            life.record = run_task(life.loop, image->prepare(largest)).value();
            run_task(life.loop, image->accept()).value();
        }
        CHECK(run_task(life.loop, image->prepare(Bytes(max_state_size + 1))).error().code == Errc::too_large);
        CHECK(run_task(life.loop, life.open(disk).value()->load(life.record.view())).value().equals(largest));
    }
}

} // namespace store_state_image_fault_test
