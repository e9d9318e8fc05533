// The manager's image grows while it is in use: what can be asked, and every operation failing or losing power on the way.
#include "store/journal.hpp"

#include "check.hpp"
#include "crash_images.hpp"
#include "every.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"

#include <algorithm>

namespace store_journal_grow_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::ListClient;
using test::run_task;

namespace {

constexpr std::uint64_t small = ManagerImage::min_size;
constexpr std::uint64_t large = ManagerImage::min_size + 100'000;

struct Fixture {
    asio::io_context loop;
    Log log{LogLevel::error, [](LogLevel, std::string_view) {}};
    const Bytes key = Bytes(32, std::byte{0x42});

    Bytes record(unsigned n) const { return Bytes(300 + n % 7, static_cast<std::byte>(n)); }
    std::unique_ptr<ManagerImage> started(FaultDisk& disk, ListClient& client) {
        ManagerImage::CreateOptions options{Uuid{}, small, Bytes(100)};
        auto image = run_task(loop, ManagerImage::create(disk.open(), std::move(options), log)).value();
        run_task(loop, image->start_journal(SecretBytes(key), client)).value();
        return image;
    }
    std::unique_ptr<ManagerImage> open(FaultDisk& disk, ListClient& client) {
        auto image = run_task(loop, ManagerImage::open(disk.open(), log)).value();
        run_task(loop, image->open_journal(SecretBytes(key), client)).value();
        return image;
    }
    Result<void> append(ManagerImage& image, unsigned n) { return run_task(loop, image.append(record(n))); }
    Result<void> grow(ManagerImage& image, std::uint64_t size) { return run_task(loop, image.grow(size)); }
    void close(ManagerImage& image) { run_task(loop, image.close()); }
    std::vector<Bytes> reopened(FaultDisk& disk) {
        ListClient client;
        close(*open(disk, client));
        return client.records;
    }
    /// How many of these records fit more.
    unsigned fill(ManagerImage& image) {
        unsigned n = 0;
        while (append(image, n)) {
            ++n;
        }
        return n;
    }
};

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "journal: a full image grows and goes on, whichever half it is in") {
        for (const bool other_half : {false, true}) {
            FaultDisk disk;
            ListClient client;
            auto image = started(disk, client);
            const unsigned before = fill(*image);
            if (other_half) {
                REQUIRE(run_task(loop, image->checkpoint()));
            }
            const auto room = image->counters().room;
            REQUIRE(grow(*image, large));
            CHECK(image->counters().room > room + 40'000);
            CHECK(fill(*image) > before / 2);
            CHECK(reopened(disk) == client.records);
            REQUIRE(grow(*image, 4 * large)); // again
            CHECK(fill(*image) > before);
            CHECK(disk.content().size() == 4 * large);
            close(*image);
            CHECK(reopened(disk) == client.records);
        }
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: it only grows, and not over its limit; without the room for it it stays as it is") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        for (const std::uint64_t size :
             {std::uint64_t{0}, small - 5000, small, small + 100, ManagerImage::max_size + 1}) {
            CHECK(grow(*image, size).error().code == Errc::usage);
        }
        disk.plan = {.fail_at = disk.operations(), .error = Errc::no_space};
        CHECK(grow(*image, large).error().code == Errc::no_space);
        REQUIRE(append(*image, 1));
        REQUIRE(grow(*image, large));
        close(*image);
        CHECK(reopened(disk) == client.records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a device that was made larger is used to its end, whatever was there before") {
        FaultDisk first(Bytes(small), true);
        ListClient client;
        auto image = started(first, client);
        REQUIRE(append(*image, 1));
        close(*image);
        Bytes content = first.content();
        content.resize(large, std::byte{0x5a}); // another volume's
        FaultDisk disk(std::move(content), true);
        ListClient again;
        image = open(disk, again);
        REQUIRE(grow(*image, 0));
        for (unsigned i = 0; i < 300; ++i) {
            again.records.resize(std::min<std::size_t>(again.records.size(), 20));
            REQUIRE(append(*image, i));
        }
        REQUIRE(run_task(loop, image->checkpoint()));
        CHECK(grow(*image, 0).error().code == Errc::usage);
        close(*image);
        CHECK(reopened(disk) == again.records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a copy that is being read while it grows is whole, or is refused") {
        for (const bool other_half : {false, true}) {
            FaultDisk disk;
            ListClient client;
            auto image = started(disk, client);
            for (unsigned i = 0; i < 20; ++i) {
                REQUIRE(append(*image, i));
            }
            if (other_half) {
                REQUIRE(run_task(loop, image->checkpoint()));
            }
            const std::vector<Bytes> then = client.records;
            auto copy = run_task(loop, image->copy()).value();
            Bytes content;
            Bytes piece(4096);
            Result<std::size_t> n = std::size_t{1};
            for (unsigned i = 0; n && *n != 0; ++i) {
                n = run_task(loop, copy->read(piece));
                if (n) {
                    content.insert(content.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(*n));
                }
                if (i == 2) {
                    REQUIRE(grow(*image, large));
                    REQUIRE(append(*image, 99));
                }
            }
            if (n) {
                FaultDisk restored(std::move(content));
                CHECK(reopened(restored) == then);
            } else {
                CHECK(n.error().code == Errc::unavailable);
            }
            copy.reset();
            close(*image);
            CHECK(reopened(disk) == client.records);
        }
    }

    TEST_CASE_FIXTURE(Fixture, "journal: power goes at any operation of growth: the image is whole, and grows then") {
        for (const bool other_half : {false, true}) {
            bool over = false;
            std::uint64_t points = 0;
            for (std::uint64_t at = 0; !over; at += test::every) {
                FaultDisk disk;
                ListClient client;
                auto image = started(disk, client);
                for (unsigned i = 0; i < 30; ++i) {
                    REQUIRE(append(*image, i));
                }
                if (other_half) {
                    REQUIRE(run_task(loop, image->checkpoint()));
                }
                disk.plan.die_at = disk.operations() + at;
                over = grow(*image, large).has_value() && append(*image, 100).has_value();
                points += over ? 0 : 1;
                const std::vector<Bytes> there = client.records;
                close(*image);
                for (const auto& crash : test::crash_images(disk)) {
                    CAPTURE(at);
                    CAPTURE(crash.how);
                    FaultDisk left(crash.content);
                    ListClient after;
                    auto again = open(left, after);
                    // The append that was under way may be there.
                    REQUIRE(after.records.size() >= there.size());
                    CHECK(std::equal(there.begin(), there.end(), after.records.begin()));
                    REQUIRE(append(*again, 7));
                    if (auto grown = grow(*again, large); !grown) {
                        CHECK(grown.error().code == Errc::usage); // it has
                    }
                    REQUIRE(append(*again, 8));
                    REQUIRE(run_task(loop, again->checkpoint()));
                    REQUIRE(append(*again, 9));
                    CHECK(again->counters().half_bytes > (small - 131'072) / 2);
                    close(*again);
                    CHECK(reopened(left) == after.records);
                }
            }
            CHECK(points * test::every > 6); // a sanitized build tries a third of them
        }
    }

    TEST_CASE_FIXTURE(Fixture, "journal: any operation of growth fails: nothing is lost, it goes on, and grows then") {
        for (const bool other_half : {false, true}) {
            for (const std::uint64_t length : {1, 3}) {
                bool over = false;
                for (std::uint64_t at = 0; !over; at += test::every) {
                    CAPTURE(at);
                    CAPTURE(length);
                    FaultDisk disk;
                    ListClient client;
                    auto image = started(disk, client);
                    for (unsigned i = 0; i < 30; ++i) {
                        REQUIRE(append(*image, i));
                    }
                    if (other_half) {
                        REQUIRE(run_task(loop, image->checkpoint()));
                    }
                    const std::uint64_t first = disk.operations() + at;
                    disk.plan = {.fail_at = first,
                                 .fail_until = first + length,
                                 .fail_prefix = at % 2 == 0 ? std::size_t{0} : std::size_t{20'000},
                                 .drop_seed = static_cast<std::uint32_t>(at % 3)};
                    (void)grow(*image, large);
                    over = disk.operations() <= first;
                    // What is on the disk is whole at any time, though the program does not know how large it is.
                    FaultDisk crashed(disk.after_crash(FaultDisk::Loss::all));
                    CHECK(reopened(crashed) == client.records);
                    for (int tries = 0; tries < 10 && !run_task(loop, image->settle()); ++tries) {
                    }
                    disk.plan = {}; // what is left of the fault was for growth
                    REQUIRE(append(*image, 7));
                    if (auto grown = grow(*image, large); !grown) {
                        CHECK(grown.error().code == Errc::usage);
                    }
                    REQUIRE(append(*image, 8));
                    REQUIRE(run_task(loop, image->checkpoint()));
                    REQUIRE(append(*image, 9));
                    close(*image);
                    FaultDisk left(disk.after_crash(FaultDisk::Loss::all));
                    CHECK(reopened(left) == client.records);
                }
            }
        }
    }
}

} // namespace store_journal_grow_test
