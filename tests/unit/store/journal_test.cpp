// The manager's image when nothing goes wrong, and the errors that are plain.
#include "store/journal.hpp"

#include "check.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"

#include <algorithm>
#include <numeric>

namespace store_journal_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::ListClient;
using test::run_task;

namespace {

Bytes record_of(std::size_t n, unsigned seed) {
    Bytes out(n);
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = static_cast<std::byte>(seed * 31 + i * 7 + (seed >> 8));
    }
    return out;
}

struct Fixture {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    const Uuid uuid = parse_uuid("99999999-2222-3333-4444-555555555555").value();
    const Bytes key = Bytes(32, std::byte{0x42});

    Result<std::unique_ptr<ManagerImage>> create(FaultDisk& disk, std::uint64_t size = ManagerImage::min_size) {
        ManagerImage::CreateOptions options{uuid, size, record_of(100, 1)};
        return run_task(loop, ManagerImage::create(disk.open(), std::move(options), log));
    }
    Result<std::unique_ptr<ManagerImage>> open(FaultDisk& disk) {
        return run_task(loop, ManagerImage::open(disk.open(), log));
    }
    std::unique_ptr<ManagerImage> started(FaultDisk& disk, ListClient& client,
                                          std::uint64_t size = ManagerImage::min_size) {
        auto image = create(disk, size).value();
        run_task(loop, image->start_journal(SecretBytes(key), client)).value();
        return image;
    }
    std::vector<Bytes> reopened(FaultDisk& disk) {
        ListClient client;
        auto image = open(disk).value();
        run_task(loop, image->open_journal(SecretBytes(key), client)).value();
        close(*image);
        return client.records;
    }
    void close(ManagerImage& image) { run_task(loop, image.close()); }
    /// All of them at once; how many succeeded.
    int append_together(ManagerImage& image, const std::vector<Bytes>& records) {
        int ok = 0;
        auto one = [](ManagerImage& to, Bytes r, int& count) -> Task<> {
            count += (co_await to.append(std::move(r))).has_value() ? 1 : 0;
        };
        for (const Bytes& r : records) {
            asio::co_spawn(loop, one(image, r, ok), [](const std::exception_ptr& e) { CHECK_FALSE(e); });
        }
        loop.restart();
        loop.run();
        return ok;
    }
};

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "journal: what was appended is there when it is opened again, in order") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        std::vector<Bytes> all;
        for (unsigned i = 0; i < 20; ++i) {
            all.push_back(record_of(10 + 60 * i, i));
            REQUIRE(run_task(loop, image->append(all.back())));
            CHECK(disk.clean());
            CHECK(client.records == all);
        }
        std::vector<Bytes> several{record_of(5, 100), record_of(0, 101), record_of(700, 102)};
        all.insert(all.end(), several.begin(), several.end());
        REQUIRE(run_task(loop, image->append_all(several)));
        close(*image);
        CHECK(run_task(loop, image->append(record_of(1, 1))).error().code == Errc::closed);
        CHECK(reopened(disk) == all);
        CHECK(reopened(disk) == all);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: appends made while a write is in flight share the next one") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        const JournalCounters before = image->counters();
        std::vector<Bytes> records;
        for (unsigned i = 0; i < 64; ++i) {
            records.push_back(record_of(50, i));
        }
        CHECK(append_together(*image, records) == 64);
        const JournalCounters after = image->counters();
        CHECK(after.records - before.records == 64);
        CHECK(after.batches - before.batches <= 2);
        CHECK(after.syncs - before.syncs <= 2);
        CHECK(after.largest_batch >= 63);
        CHECK(after.waiting == 0);
        CHECK(std::accumulate(after.batch_sizes.begin(), after.batch_sizes.end(), std::uint64_t{0}) == after.batches);
        CHECK(after.batch_sizes.at(6) + after.batch_sizes.at(7) >= 1); // 33 to 128
        CHECK(client.records == records);
        CHECK(client.applied_when_acknowledged == 64);
        close(*image);
        CHECK(reopened(disk) == records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a client may have a batch wait for those who shared the last one") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        REQUIRE(run_task(loop, image->append(record_of(10, 0))));
        REQUIRE(run_task(loop, image->append(record_of(10, 1))));
        CHECK(client.gathers == 0); // one writer: there is nobody else

        unsigned told = 0;
        auto send = [&](unsigned count) {
            auto one = [](ManagerImage& to, unsigned& ok) -> Task<> {
                ok += (co_await to.append(record_of(10, 7))).has_value() ? 1 : 0;
            };
            for (unsigned i = 0; i < count; ++i) {
                asio::co_spawn(loop, one(*image, told), [](const std::exception_ptr& e) { CHECK_FALSE(e); });
            }
            loop.restart();
            loop.poll();
        };
        send(8);
        REQUIRE(told == 8);
        const auto shared = client.prologue_counts.back();
        REQUIRE(shared >= 7);
        client.gathers = 0;
        client.on_gather = [](Task<Result<void>> everyone) -> Task<> { (void)co_await std::move(everyone); };
        const auto batches = image->counters().batches;
        const auto records = client.records.size();

        SUBCASE("all of them come: one batch, at once") {
            send(1);
            CHECK(told == 8);
            CHECK(client.records.size() == records);
            CHECK(client.gathers == 1);
            send(static_cast<unsigned>(shared) - 2);
            CHECK(told == 8);
            send(1);
            CHECK(told == 8 + shared);
            CHECK(image->counters().batches == batches + 1);
            CHECK(client.prologue_counts.back() == shared);
        }
        SUBCASE("the client does not wait") {
            client.on_gather = nullptr;
            send(1);
            CHECK(told == 9);
            CHECK(client.gathers == 1);
            send(1); // the last batch had one caller
            CHECK(client.gathers == 1);
        }
        SUBCASE("the client gives up") {
            asio::steady_timer up(loop, asio::steady_timer::time_point::max());
            client.on_gather = [&up](Task<Result<void>>) -> Task<> { (void)co_await up.async_wait(use_tuple); };
            send(2);
            CHECK(told == 8);
            up.cancel();
            send(0);
            CHECK(told == 10);
            CHECK(image->counters().batches == batches + 1);
        }
        SUBCASE("the client fails: the callers that are there do not") {
            client.on_gather = [](Task<Result<void>>) -> Task<> {
                co_await asio::post(asio::use_awaitable);
                throw std::runtime_error("no clock");
            };
            send(1);
            CHECK(told == 9);
            CHECK(lines.back().find("no clock") != std::string::npos);
        }
        SUBCASE("a full batch waits for nobody") {
            send(1);
            REQUIRE(told == 8);
            Result<void> outcome{make_error(Errc::closed, "not yet")};
            auto large = [](ManagerImage& to, Result<void>& out) -> Task<> {
                out = co_await to.append(record_of(40'000, 3));
            };
            asio::co_spawn(loop, large(*image, outcome), [](const std::exception_ptr& e) { CHECK_FALSE(e); });
            send(0);
            CHECK(told == 9);
            CHECK(outcome);
        }
        SUBCASE("the end waits for nobody, and who was there is served") {
            send(1);
            REQUIRE(told == 8);
            close(*image);
            CHECK(told == 9);
        }
        close(*image);
        CHECK(reopened(disk) == client.records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: when a half is full the state goes on in the other, again and again") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        for (unsigned i = 0; i < 600; ++i) {
            if (client.records.size() > 20) {
                client.records.erase(client.records.begin(), client.records.begin() + 10);
            }
            REQUIRE(run_task(loop, image->append(record_of(400, i))));
        }
        CHECK(image->counters().checkpoints >= 4);
        CHECK(image->counters().checkpoint_bytes > 0);
        close(*image);
        // Since the last checkpoint nothing was erased in between, or it was: the newest records are there in any case.
        const auto records = reopened(disk);
        REQUIRE(records.size() >= client.records.size());
        CHECK(std::equal(client.records.rbegin(), client.records.rend(), records.rbegin()));
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a state that does not fit is refused before anything is overwritten") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        std::vector<Bytes> kept;
        Result<void> last{};
        for (unsigned i = 0; i < 1000 && last; ++i) {
            last = run_task(loop, image->append(record_of(1000, i)));
            if (last) {
                kept.push_back(record_of(1000, i));
            }
        }
        REQUIRE_FALSE(last);
        CHECK(last.error().code == Errc::no_space);
        CHECK(client.records == kept);
        CHECK(kept.size() > 40);
        // Smaller things may still fit, and once the state has shrunk there is room again.
        client.records.resize(5);
        REQUIRE(run_task(loop, image->append(record_of(1000, 5000))));
        close(*image);
        CHECK(reopened(disk) == client.records);
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: a copy is read while appends go on, and opens with what there was when it began") {
        for (bool other_half : {false, true}) {
            FaultDisk disk;
            ListClient client;
            auto image = started(disk, client);
            std::vector<Bytes> all;
            auto append = [&](unsigned i) {
                all.push_back(record_of(300, i));
                REQUIRE(run_task(loop, image->append(all.back())));
            };
            for (unsigned i = 0; i < 20; ++i) {
                append(i);
            }
            if (other_half) {
                REQUIRE(run_task(loop, image->checkpoint()));
            }
            auto copy = run_task(loop, image->copy()).value();
            const std::vector<Bytes> then = all;
            CHECK(copy->size() <= ManagerImage::min_size);
            Bytes content;
            Bytes piece(4096);
            for (unsigned i = 100;; ++i) {
                const std::size_t n = run_task(loop, copy->read(piece)).value();
                if (n == 0) {
                    break;
                }
                content.insert(content.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(n));
                if (i < 130) {
                    append(i);
                }
                if (i == 110) { // a later checkpoint goes to the other half: this one's header is zeroed on the disk
                    REQUIRE(run_task(loop, image->checkpoint()));
                }
            }
            CHECK(content.size() == copy->size());
            FaultDisk restored(std::move(content));
            CHECK(reopened(restored) == then);
            CHECK(reopened(restored) == then); // and it can be written
            close(*image);
            CHECK(reopened(disk) == all);
        }
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: a copy whose half is begun anew is refused; one of a closed or failing journal too") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        for (unsigned i = 0; i < 20; ++i) {
            REQUIRE(run_task(loop, image->append(record_of(300, i))));
        }
        auto copy = run_task(loop, image->copy()).value();
        Bytes piece(4096);
        auto read_on = [&] {
            Result<std::size_t> n = std::size_t{1};
            while (n && *n != 0) {
                n = run_task(loop, copy->read(piece));
            }
            return n;
        };
        REQUIRE(run_task(loop, image->checkpoint()));
        REQUIRE(run_task(loop, image->checkpoint()));
        CHECK(read_on().error().code == Errc::unavailable);
        copy = run_task(loop, image->copy()).value();
        CHECK(read_on());

        disk.plan.fail_at = disk.operations() + 1; // in its checkpoint
        CHECK(run_task(loop, image->copy()).has_error());
        REQUIRE(run_task(loop, image->append(record_of(1, 1))));
        copy = run_task(loop, image->copy()).value();
        CHECK(read_on());
        copy = run_task(loop, image->copy()).value();
        close(*image);
        CHECK(read_on().error().code == Errc::closed);
        copy.reset();
        CHECK(run_task(loop, image->copy()).error().code == Errc::closed);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: 20,000 vTPMs fit into 16 MiB, with room") {
        FaultDisk disk;
        ListClient client;
        for (unsigned i = 0; i < 20'000; ++i) {
            client.records.push_back(record_of(200, i));
        }
        auto image = started(disk, client, std::uint64_t{16} << 20);
        CHECK(image->counters().checkpoint_bytes < image->counters().half_bytes * 6 / 10);
        REQUIRE(run_task(loop, image->append(record_of(200, 20'000))));
        close(*image);
        CHECK(reopened(disk) == client.records);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: the superblock is replaced, and is there before the journal is open") {
        FaultDisk disk;
        {
            auto image = create(disk).value();
            CHECK(image->superblock() == record_of(100, 1));
            REQUIRE(run_task(loop, image->replace_superblock(record_of(ManagerImage::superblock_limit, 2))));
            CHECK(run_task(loop, image->replace_superblock(Bytes(ManagerImage::superblock_limit + 1))).error().code ==
                  Errc::too_large);
            CHECK(disk.clean());
        }
        auto image = open(disk).value();
        CHECK(image->uuid() == uuid);
        CHECK_FALSE(image->journal_started());
        CHECK(image->superblock() == record_of(ManagerImage::superblock_limit, 2));
    }

    TEST_CASE_FIXTURE(Fixture, "journal: it is started once, and never again as an empty one") {
        FaultDisk disk;
        ListClient client;
        {
            auto image = create(disk).value();
            CHECK(run_task(loop, image->open_journal(SecretBytes(key), client)).error().code == Errc::not_found);
            CHECK(run_task(loop, image->append(record_of(1, 1))).error().code == Errc::usage);
            REQUIRE(run_task(loop, image->start_journal(SecretBytes(key), client)));
            CHECK(run_task(loop, image->start_journal(SecretBytes(key), client)).error().code == Errc::exists);
            close(*image);
        }
        auto image = open(disk).value();
        CHECK(image->journal_started());
        CHECK(run_task(loop, image->start_journal(SecretBytes(key), client)).error().code == Errc::exists);
        CHECK(create(disk).error().code == Errc::exists);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: another key opens nothing and changes nothing") {
        FaultDisk disk;
        ListClient client;
        close(*started(disk, client));
        const Bytes before = disk.content();
        auto image = open(disk).value();
        auto refused = run_task(loop, image->open_journal(SecretBytes(Bytes(32, std::byte{1})), client));
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::corrupt);
        CHECK(disk.content() == before);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: a record the client does not know refuses the image, changing nothing") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        REQUIRE(run_task(loop, image->append(record_of(10, 1))));
        close(*image);
        const Bytes before = disk.content();
        ListClient other;
        other.refuse_all = true;
        image = open(disk).value();
        CHECK(run_task(loop, image->open_journal(SecretBytes(key), other)).error().code == Errc::version);
        CHECK(disk.content() == before);
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: what comes before an acknowledgement fails: no caller is told yes, and it goes on") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        client.next_prologue = {record_of(9, 9)};
        REQUIRE(run_task(loop, image->append(record_of(10, 1))));
        CHECK(client.records == std::vector<Bytes>{record_of(9, 9), record_of(10, 1)});
        CHECK(client.prologue_counts == std::vector<std::size_t>{1});
        client.next_prologue.clear();
        client.acknowledge_outcome = make_error(Errc::tpm, "the counter does not move");
        CHECK(append_together(*image, {record_of(10, 2), record_of(10, 3)}) == 0);
        CHECK(run_task(loop, image->append(record_of(10, 4))).error().code == Errc::unavailable);
        CHECK(client.records.size() == 5); // durable and applied all the same
        client.acknowledge_outcome = {};
        CHECK(run_task(loop, image->append(record_of(10, 5))));
        close(*image);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: limits of size are named") {
        FaultDisk disk;
        ListClient client;
        auto image = started(disk, client);
        CHECK(run_task(loop, image->append(Bytes(ManagerImage::append_limit))).error().code == Errc::too_large);
        close(*image);
        FaultDisk small(Bytes(100'000), true);
        CHECK(create(small).error().code == Errc::usage);
        FaultDisk foreign(Bytes(300'000, std::byte{7}));
        const Bytes before = foreign.content();
        CHECK(create(foreign).error().code == Errc::exists);
        CHECK(open(foreign).error().code == Errc::not_ours);
        CHECK(foreign.content() == before);
    }
}

} // namespace store_journal_test
