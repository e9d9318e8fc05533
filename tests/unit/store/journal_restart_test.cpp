// What the page cache says is not always what is on the disk; and halves so large that a stray byte can be out of reach of
// one torn frame.
#include "check.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"
#include "store/journal.hpp"

namespace store_journal_restart_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::ListClient;
using test::run_task;

namespace {

struct Fixture {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    const Bytes key = Bytes(32, std::byte{0x42});

    std::unique_ptr<ManagerImage> start(FaultDisk& disk, ListClient& client, std::uint64_t size) {
        ManagerImage::CreateOptions options{Uuid{}, size, {}};
        auto image = run_task(loop, ManagerImage::create(disk.open(), std::move(options), log)).value();
        run_task(loop, image->start_journal(SecretBytes(key), client)).value();
        return image;
    }
    std::unique_ptr<ManagerImage> reopen(FaultDisk& disk, ListClient& client) {
        auto image = run_task(loop, ManagerImage::open(disk.open(), log)).value();
        run_task(loop, image->open_journal(SecretBytes(key), client)).value();
        return image;
    }
    Result<void> append(ManagerImage& image, std::size_t size, unsigned fill) {
        return run_task(loop, image.append(Bytes(size, static_cast<std::byte>(fill))));
    }
    void close(ManagerImage& image) { run_task(loop, image.close()); }
};

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "journal: a sync fails, the program starts again, power goes later: no hole is left") {
        FaultDisk disk;
        ListClient first;
        auto image = start(disk, first, ManagerImage::min_size);
        REQUIRE(append(*image, 100, 1));
        // The write is in the page cache, its sync drops it, and the disk fails until the program is started again.
        disk.plan = {.fail_at = disk.operations() + 1, .fail_until = disk.operations() + 1000};
        auto failed = append(*image, 100, 2);
        REQUIRE_FALSE(failed);
        CHECK(failed.error().code == Errc::unavailable);
        CHECK(run_task(loop, image->settle()).has_error());
        CHECK(append(*image, 100, 3).has_error());
        close(*image);
        disk.plan = {};

        ListClient second;
        image = reopen(disk, second);
        REQUIRE(append(*image, 100, 4));
        close(*image);
        FaultDisk after(disk.after_crash(FaultDisk::Loss::all));
        ListClient third;
        close(*reopen(after, third));
        CHECK(third.records == second.records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: zeros whose sync failed are written again, not believed") {
        for (std::uint64_t at = 0; at < 14; ++at) {
            CAPTURE(at);
            FaultDisk disk;
            ListClient client;
            auto image = start(disk, client, 2 << 20);
            for (unsigned i = 0; i < 6; ++i) { // both halves are used far beyond one frame's reach
                client.records.clear();
                REQUIRE(append(*image, 150'000, i));
                REQUIRE(append(*image, 150'000, i));
                REQUIRE(append(*image, 150'000, i));
                REQUIRE(append(*image, 150'000, i));
                client.records.clear();
                if (i % 2 == 0) {
                    REQUIRE(run_task(loop, image->checkpoint()));
                }
            }
            disk.plan.fail_at = disk.operations() + at;
            if (run_task(loop, image->checkpoint())) {
                CHECK(at >= 10); // the fault came after all of its operations
                disk.plan = {};
            } else {
                REQUIRE(run_task(loop, image->checkpoint()));
            }
            REQUIRE(append(*image, 10, 99));
            close(*image);
            FaultDisk after(disk.after_crash(FaultDisk::Loss::all));
            ListClient again;
            close(*reopen(after, again));
            REQUIRE(again.records == client.records);
        }
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a stray byte out of a torn frame's reach is damage, within it is cut") {
        FaultDisk disk;
        ListClient client;
        auto image = start(disk, client, 2 << 20);
        REQUIRE(append(*image, 1000, 1));
        close(*image);
        constexpr std::size_t after_the_last =
            131'072 + 512 + 512 + 1536; // half 0: header, checkpoint's end, the batch
        for (const std::size_t distance :
             {std::size_t{0}, std::size_t{5000}, std::size_t{262'000}, std::size_t{600'000}}) {
            Bytes content = disk.content();
            content[after_the_last + distance] = std::byte{1};
            FaultDisk stray(content);
            ListClient again;
            auto opened_image = run_task(loop, ManagerImage::open(stray.open(), log)).value();
            auto opened = run_task(loop, opened_image->open_journal(SecretBytes(key), again));
            CAPTURE(distance);
            if (distance < 262'144) {
                REQUIRE(opened);
                CHECK(again.records == client.records);
                CHECK(stray.content() == disk.content());
            } else {
                REQUIRE_FALSE(opened);
                CHECK(opened.error().code == Errc::corrupt);
                CHECK(opened.error().message.find(std::to_string(after_the_last + distance)) != std::string::npos);
                CHECK(stray.content() == content);
            }
            close(*opened_image);
        }
    }
}

} // namespace store_journal_restart_test
