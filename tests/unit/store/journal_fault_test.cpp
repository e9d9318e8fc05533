// The invariants of the manager's image, with power going, or an operation failing, at every write, sync and allocation of
// a manager's life in turn.
#include "store/journal.hpp"

#include "check.hpp"
#include "crash_images.hpp"
#include "every.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"

#include <algorithm>

namespace store_journal_fault_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::ListClient;
using test::run_task;

namespace {

using Records = std::vector<Bytes>;

Bytes record_of(unsigned number) {
    const std::size_t sizes[] = {200, 30, 1700, 0, 430, 900};
    Bytes out(4 + sizes[number % 6]);
    for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<std::byte>(i < 4 ? number >> (8 * i) : number * 17 + i * 5);
    }
    return out;
}

constexpr unsigned steps = 9;

/// A manager's life: a first journal, single appends, several at once, checkpoints, a new superblock.
struct Life {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    const Uuid uuid = parse_uuid("99999999-2222-3333-4444-555555555555").value();
    const Bytes key = Bytes(32, std::byte{0x42});
    const Bytes first_superblock = Bytes(300, std::byte{1});
    const Bytes second_superblock = Bytes(900, std::byte{2});

    bool created = false;
    bool started = false;
    bool superblock_replaced = false;
    bool superblock_in_doubt = false;
    Records acknowledged;
    Records in_doubt; ///< appends that failed with an unknown outcome, in order
    int failures = 0;
    ListClient client;

    Result<std::unique_ptr<ManagerImage>> create(FaultDisk& disk) {
        ManagerImage::CreateOptions options{uuid, ManagerImage::min_size, first_superblock};
        return run_task(loop, ManagerImage::create(disk.open(), std::move(options), log));
    }
    Result<std::unique_ptr<ManagerImage>> open(FaultDisk& disk) {
        return run_task(loop, ManagerImage::open(disk.open(), log));
    }
    void close(ManagerImage& image) { run_task(loop, image.close()); }

    static Task<> append_one(ManagerImage& image, Bytes record, Life& life) {
        Bytes copy = record;
        auto outcome = co_await image.append(std::move(record));
        if (outcome) {
            // An acknowledgement after a doubt has settled the doubt: it is not there.
            life.in_doubt.clear();
            life.acknowledged.push_back(std::move(copy));
        } else {
            ++life.failures;
            if (outcome.error().code == Errc::unavailable) {
                life.in_doubt.push_back(std::move(copy));
            }
        }
    }
    void append(ManagerImage& image, std::vector<unsigned> numbers) {
        for (unsigned n : numbers) {
            asio::co_spawn(loop, append_one(image, record_of(n), *this),
                           [](const std::exception_ptr& e) { REQUIRE_FALSE(e); });
        }
        loop.restart();
        loop.run();
    }
    void checkpoint(ManagerImage& image) { failures += run_task(loop, image.checkpoint()) ? 0 : 1; }

    void live(FaultDisk& disk) {
        auto image = create(disk);
        created = image.has_value();
        if (!created) {
            return;
        }
        started = run_task(loop, (*image)->start_journal(SecretBytes(key), client)).has_value();
        if (started) {
            go_on(**image);
        }
        close(**image);
    }
    void go_on(ManagerImage& image) {
        for (unsigned i = 0; i < steps; ++i) {
            append(image, i % 3 == 1 ? std::vector<unsigned>{10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3}
                                     : std::vector<unsigned>{10 * i});
            if (i % 3 == 2) {
                checkpoint(image);
            }
            if (i == 4) {
                superblock_replaced = run_task(loop, image.replace_superblock(second_superblock)).has_value();
                superblock_in_doubt = !superblock_replaced;
                failures += superblock_replaced ? 0 : 1;
            }
        }
    }

    void inherit(const Life& before) {
        created = before.created;
        started = before.started;
        superblock_replaced = before.superblock_replaced;
        superblock_in_doubt = before.superblock_in_doubt;
        acknowledged = before.acknowledged;
        in_doubt = before.in_doubt;
    }

    /// The invariants, on what is there after a crash.
    void check(const Bytes& content) {
        FaultDisk disk(content);
        auto image = open(disk);
        if (!image) {
            INFO(image.error().message);
            REQUIRE_FALSE(created);
            REQUIRE(image.error().code == Errc::not_ours);
            image = create(disk);
            REQUIRE(image);
        }
        check_superblock((*image)->superblock());
        Result<void> opened{};
        if ((*image)->journal_started()) {
            opened = run_task(loop, (*image)->open_journal(SecretBytes(key), client));
        } else {
            REQUIRE_FALSE(started);
            opened = run_task(loop, (*image)->start_journal(SecretBytes(key), client));
        }
        REQUIRE(opened);
        check_records(client.records);
        // And life goes on: a small record where a torn one may have been, then more.
        Records then = client.records;
        acknowledged.clear();
        append(**image, {505});
        REQUIRE(acknowledged.size() == 1);
        FaultDisk copy(disk.after_crash(FaultDisk::Loss::all));
        REQUIRE(reopened(copy) == client.records);
        append(**image, {500, 501});
        REQUIRE(acknowledged.size() == 3);
        checkpoint(**image);
        append(**image, {503});
        REQUIRE(acknowledged.size() == 4);
        then.insert(then.end(), acknowledged.begin(), acknowledged.end());
        close(**image);
        REQUIRE(reopened(disk) == then);
    }

    void check_superblock(const Bytes& found) const {
        const bool old_one = found == first_superblock;
        const bool new_one = found == second_superblock;
        REQUIRE((old_one || new_one));
        REQUIRE((superblock_in_doubt || new_one == superblock_replaced));
    }

    /// All that was acknowledged, then of what was in doubt a beginning, whole calls only.
    void check_records(const Records& found) const {
        REQUIRE(found.size() >= acknowledged.size());
        REQUIRE(std::equal(acknowledged.begin(), acknowledged.end(), found.begin()));
        const auto extra = static_cast<std::ptrdiff_t>(acknowledged.size());
        REQUIRE(found.size() - acknowledged.size() <= in_doubt.size());
        REQUIRE(std::equal(found.begin() + extra, found.end(), in_doubt.begin()));
    }

    Records reopened(FaultDisk& disk) {
        ListClient fresh;
        auto image = open(disk).value();
        run_task(loop, image->open_journal(SecretBytes(key), fresh)).value();
        close(*image);
        return fresh.records;
    }
};

std::uint64_t operations_of_a_life() {
    FaultDisk disk;
    Life life;
    life.live(disk);
    REQUIRE(life.failures == 0);
    REQUIRE(life.acknowledged.size() == steps + 9);
    REQUIRE(life.client.records == life.acknowledged);
    return disk.operations();
}

} // namespace

TEST_SUITE("store") {
    TEST_CASE("journal: power goes at any operation: what was acknowledged is there, the rest wholly or not at all") {
        const std::uint64_t operations = operations_of_a_life();
        CHECK(operations > 60);
        for (std::uint64_t at = 0; at < operations; at += test::every) {
            FaultDisk disk;
            disk.plan.die_at = at;
            Life before;
            before.live(disk);
            REQUIRE(disk.dead());
            for (const auto& crash : test::crash_images(disk)) {
                CAPTURE(at);
                CAPTURE(crash.how);
                Life after;
                after.inherit(before);
                after.check(crash.content);
            }
        }
    }

    TEST_CASE("journal: any operation fails: an error to its callers only, and memory is what the disk says") {
        const std::uint64_t operations = operations_of_a_life();
        for (std::uint64_t at = 0; at < operations; at += test::every) {
            for (const std::size_t prefix : {0, 50, 512, 700}) {
                for (const std::uint32_t seed : {0U, 9U}) {
                    CAPTURE(at);
                    CAPTURE(prefix);
                    CAPTURE(seed);
                    FaultDisk disk;
                    disk.plan = {.fail_at = at, .error = Errc::no_space, .fail_prefix = prefix, .drop_seed = seed};
                    Life life;
                    life.live(disk);
                    if (!life.started) {
                        life.check(disk.after_crash(FaultDisk::Loss::all));
                        continue;
                    }
                    REQUIRE(life.failures <= 4);
                    REQUIRE(life.in_doubt.empty());
                    REQUIRE(life.client.records == life.acknowledged);
                    life.client.records.clear();
                    life.check(disk.after_crash(FaultDisk::Loss::all));
                }
            }
        }
    }

    TEST_CASE("journal: an operation fails and then power goes: no failed batch comes back over what came later") {
        const std::uint64_t operations = operations_of_a_life();
        for (std::uint64_t at = 8; at < operations; at += test::every) {
            for (const std::uint64_t later : {1, 2, 4, 7}) {
                FaultDisk disk;
                disk.plan = {.die_at = at + later,
                             .fail_at = at,
                             .fail_prefix = at % 2 == 0 ? std::size_t{100'000} : std::size_t{600},
                             .drop_seed = static_cast<std::uint32_t>(at % 3)};
                Life before;
                before.live(disk);
                for (const auto& crash : test::crash_images(disk, 1)) {
                    CAPTURE(at);
                    CAPTURE(later);
                    CAPTURE(crash.how);
                    Life after;
                    after.inherit(before);
                    after.check(crash.content);
                }
            }
        }
    }

    TEST_CASE("journal: a disk that fails for a while: appends fail, nothing is lost, and then it goes on") {
        for (std::uint64_t at = 0; at < 50; at += 2) {
            for (const std::uint64_t length : {2, 7, 20}) {
                CAPTURE(at);
                CAPTURE(length);
                FaultDisk disk;
                Life life;
                auto image = life.create(disk).value();
                REQUIRE(run_task(life.loop, image->start_journal(SecretBytes(life.key), life.client)));
                life.created = life.started = true;
                const std::uint64_t first = disk.operations() + at;
                disk.plan = {
                    .fail_at = first, .fail_until = first + length, .error = Errc::no_space, .fail_prefix = 512};
                life.go_on(*image);
                for (int tries = 0; tries < 30 && !run_task(life.loop, image->settle()); ++tries) {
                }
                REQUIRE(run_task(life.loop, image->settle()));
                // Settled: what failed is not there.
                life.in_doubt.clear();
                REQUIRE(life.client.records == life.acknowledged);
                life.close(*image);
                Life after;
                after.inherit(life);
                after.check(disk.after_crash(FaultDisk::Loss::all));
            }
        }
    }

    TEST_CASE("journal: no byte can be flipped unnoticed, and none makes it fall back to what is older") {
        FaultDisk disk;
        Life life;
        auto made = life.create(disk).value();
        REQUIRE(run_task(life.loop, made->start_journal(SecretBytes(life.key), life.client)));
        life.append(*made, {0, 1});
        life.checkpoint(*made);
        life.append(*made, {6});
        life.append(*made, {2});
        life.append(*made, {1});
        life.close(*made);
        const Bytes good = disk.content();
        const Records expected = life.client.records;
        int refused = 0;
        int mended = 0;
        auto flip = [&](std::size_t at, std::byte mask) {
            CAPTURE(at);
            CAPTURE(static_cast<int>(mask));
            Bytes bad = good;
            bad[at] ^= mask;
            FaultDisk damaged(std::move(bad));
            Life after;
            auto image = after.open(damaged);
            if (!image) {
                ++refused;
                const Errc code = image.error().code;
                REQUIRE((code == Errc::corrupt || code == Errc::not_ours || code == Errc::version));
                return;
            }
            REQUIRE((*image)->superblock() == life.first_superblock);
            REQUIRE((*image)->journal_started());
            auto opened = run_task(after.loop, (*image)->open_journal(SecretBytes(life.key), after.client));
            if (opened) {
                REQUIRE(after.client.records == expected);
                REQUIRE(after.reopened(damaged) == expected);
                mended += after.lines.empty() ? 0 : 1;
            } else {
                ++refused;
                REQUIRE(opened.error().code == Errc::corrupt);
            }
        };
        constexpr std::size_t halves_at = 131'072;
        const std::size_t half = (ManagerImage::min_size - halves_at) / 2;
        int superblock_flips = 0;
        for (std::size_t at = 0; at < halves_at; at += at % 65'536 < 80 || at % 65'536 > 65'490 ? 1 : 997) {
            flip(at, std::byte{0x04});
            ++superblock_flips;
        }
        CHECK(refused == 0);
        CHECK(mended == superblock_flips); // each is in one of two copies
        // The active half (1): every byte of what is used, then here and there; the old one: here and there.
        std::size_t used = half;
        while (good[halves_at + half + used - 1] == std::byte{0}) {
            --used;
        }
        CHECK(used > 4000);
        CHECK(used % 512 == 0);
        int frame_flips = 0;
        for (std::size_t at = 0; at < used; at += test::every) {
            flip(halves_at + half + at, static_cast<std::byte>(1U << (at % 8)));
            ++frame_flips;
        }
        // All but the five frames' end marks are fatal, each of which is made good.
        CHECK(refused + (mended - superblock_flips) == frame_flips);
        CHECK((test::sanitized || refused == static_cast<int>(used - 5 * 16)));
        for (std::size_t at = used; at < half; at += at < used + 600 ? 1 : 1009) {
            flip(halves_at + half + at, std::byte{0xff});
        }
        for (std::size_t at = 0; at < half; at += at < 600 ? 7 : 101) {
            flip(halves_at + at, std::byte{0xff});
        }
        // A last byte that becomes zero looks like the end of a torn write.
        for (std::size_t at = used - 40; at < used; ++at) {
            flip(halves_at + half + at, good[halves_at + half + at]);
        }
    }

    TEST_CASE("journal: frames cannot be exchanged, repeated or left out") {
        FaultDisk disk;
        Life life;
        auto made = life.create(disk).value();
        REQUIRE(run_task(life.loop, made->start_journal(SecretBytes(life.key), life.client)));
        for (unsigned n : {1U, 7U, 13U, 19U}) { // of one size
            life.append(*made, {n});
        }
        life.close(*made);
        const Bytes good = disk.content();
        constexpr std::size_t first_batch = 131'072 + 3 * 512 - 512; // header, end frame, then one sector each
        auto sector = [&](Bytes& b, std::size_t i) { return MutByteView(b).subspan(first_batch + i * 512, 512); };
        auto refuse = [&](const Bytes& content) {
            FaultDisk changed(content);
            Life after;
            auto image = after.open(changed).value();
            auto opened = run_task(after.loop, image->open_journal(SecretBytes(life.key), after.client));
            REQUIRE_FALSE(opened);
            CHECK(opened.error().code == Errc::corrupt);
            CHECK(opened.error().message.find("offset") != std::string::npos);
            CHECK(changed.content() == content);
        };
        Bytes exchanged = good;
        std::ranges::swap_ranges(sector(exchanged, 1), sector(exchanged, 2));
        refuse(exchanged);
        Bytes left_out = good;
        std::ranges::copy(sector(left_out, 2), sector(left_out, 1).begin());
        std::ranges::copy(sector(left_out, 3), sector(left_out, 2).begin());
        std::ranges::fill(sector(left_out, 3), std::byte{0});
        refuse(left_out);
        Bytes repeated = good;
        std::ranges::copy(sector(repeated, 3), sector(repeated, 4).begin());
        refuse(repeated);
    }

    TEST_CASE("journal: with neither half whole it is refused and left as it is") {
        FaultDisk disk;
        Life life;
        life.live(disk);
        constexpr std::size_t halves_at = 131'072;
        Bytes wiped = disk.content();
        std::fill(wiped.begin() + halves_at, wiped.end(), std::byte{0});
        FaultDisk empty(wiped);
        Life after;
        auto image = after.open(empty).value();
        CHECK(image->journal_started());
        auto opened = run_task(after.loop, image->open_journal(SecretBytes(life.key), after.client));
        REQUIRE_FALSE(opened);
        CHECK(opened.error().code == Errc::corrupt);
        CHECK(run_task(after.loop, image->start_journal(SecretBytes(life.key), after.client)).error().code ==
              Errc::exists);
        CHECK(empty.content() == wiped);
    }
}

} // namespace store_journal_fault_test
