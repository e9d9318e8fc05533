// What the client's check refuses is not written, and the rest of its batch is; what could not be applied stops the journal;
// what an older program wrote that cannot be applied is set aside; a batch that only a checkpoint has room for.
#include "store/journal.hpp"

#include "check.hpp"
#include "crash_images.hpp"
#include "every.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"

#include <algorithm>

namespace store_journal_check_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::ListClient;
using test::run_task;

namespace {

using Records = std::vector<Bytes>;

Bytes record(std::string_view text, std::size_t size = 40) {
    Bytes out(std::max(size, text.size()));
    std::ranges::transform(text, out.begin(), [](char c) { return static_cast<std::byte>(c); });
    return out;
}
bool is(ByteView r, std::string_view text) {
    return r.size() >= text.size() && std::ranges::equal(r.first(text.size()), as_bytes(text));
}

/// Refuses what begins with "bad"; may be told not to (as programs before this one did not), and then cannot apply it.
class Careful final : public JournalClient {
  public:
    Result<void> apply(ByteView r) override {
        if (is(r, "bad") || (is(r, "new") && !knows_new)) {
            return make_error(is(r, "bad") ? Errc::corrupt : Errc::version, "no");
        }
        records.push_back(to_bytes(r));
        return {};
    }
    void snapshot(const std::function<void(ByteView)>& emit) override { snapshot_after({}, emit); }
    void snapshot_after(std::span<const ByteView> after, const std::function<void(ByteView)>& emit) override {
        Records all = records;
        for (const ByteView r : after) {
            all.push_back(to_bytes(r));
        }
        for (const Bytes& r : all) {
            if (!std::ranges::any_of(all, [&](const Bytes& x) { return takes_away(x, r); }) && !is(r, "minus")) {
                emit(r);
            }
        }
    }
    Task<> gather(Task<Result<void>> /*everyone*/) override { co_return; }
    Result<void> check(std::span<const Bytes> wanted) override {
        return careful && std::ranges::any_of(wanted, [](const Bytes& r) { return is(r, "bad"); })
                   ? make_error(Errc::busy, "somebody was quicker")
                   : Result<void>{};
    }
    bool cannot_follow(ByteView r) override { return is(r, "bad"); }
    void on_stopped(const Error& why) override { stopped = why; }
    std::vector<Bytes> prologue(std::size_t /*count*/) override { return {}; }
    Task<Result<void>> before_acknowledge() override { co_return Result<void>{}; }

    /// "minus X" takes "X..." out of the snapshot.
    static bool takes_away(const Bytes& minus, const Bytes& r) {
        return is(minus, "minus") && r.size() > 8 && std::equal(r.begin(), r.begin() + 8, minus.begin() + 6);
    }

    Records records;
    std::optional<Error> stopped;
    bool careful = true;
    bool knows_new = true;
};

struct Fixture {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    const Uuid uuid = parse_uuid("99999999-2222-3333-4444-555555555555").value();
    const Bytes key = Bytes(32, std::byte{0x42});

    std::unique_ptr<ManagerImage> started(FaultDisk& disk, JournalClient& client) {
        ManagerImage::CreateOptions options{uuid, ManagerImage::min_size, Bytes(100)};
        auto image = run_task(loop, ManagerImage::create(disk.open(), std::move(options), log)).value();
        run_task(loop, image->start_journal(SecretBytes(key), client)).value();
        return image;
    }
    Result<std::unique_ptr<ManagerImage>> open(FaultDisk& disk, JournalClient& client) {
        auto image = run_task(loop, ManagerImage::open(disk.open(), log)).value();
        auto opened = run_task(loop, image->open_journal(SecretBytes(key), client));
        if (!opened) {
            return opened.error();
        }
        return image;
    }
    Result<void> append(ManagerImage& image, Records records) {
        return run_task(loop, image.append_all(std::move(records)));
    }
    void close(ManagerImage& image) { run_task(loop, image.close()); }
    /// Ever smaller records, until nothing fits; how many.
    unsigned fill(ManagerImage& image) {
        unsigned count = 0;
        for (const std::size_t size : {2000, 200, 20}) {
            Result<void> last{};
            while (last) {
                last = append(image, {record(fmt::format("r{:07}", count), size)});
                count += last ? 1 : 0;
            }
            CHECK(last.error().code == Errc::no_space);
            CHECK(last.error().message.find("vtpmctl store grow") != std::string::npos);
        }
        return count;
    }
    /// All at once; each one's outcome.
    std::vector<Result<void>> together(ManagerImage& image, const std::vector<Records>& calls) {
        std::vector<Result<void>> outcomes(calls.size());
        auto one = [](ManagerImage& to, Records r, Result<void>& out) -> Task<> {
            out = co_await to.append_all(std::move(r));
        };
        for (std::size_t i = 0; i < calls.size(); ++i) {
            asio::co_spawn(loop, one(image, calls[i], outcomes[i]),
                           [](const std::exception_ptr& e) { CHECK_FALSE(e); });
        }
        loop.restart();
        loop.run();
        return outcomes;
    }
};

/// A store as a program without checks left it: `before` whole, then one batch.
Bytes broken_store(Fixture& f, const Records& before, const Records& batch) {
    FaultDisk disk;
    Careful old;
    old.careful = false;
    auto image = f.started(disk, old);
    REQUIRE(f.append(*image, before));
    auto broken = f.append(*image, batch);
    REQUIRE_FALSE(broken);
    CHECK(broken.error().code == Errc::unavailable); // it is durable
    f.close(*image);
    return disk.content();
}

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "journal: what cannot follow is refused alone, and its batch goes on without it") {
        FaultDisk disk;
        Careful client;
        auto image = started(disk, client);
        const auto outcomes = together(
            *image,
            {{record("a")}, {record("b")}, {record("c"), record("bad")}, {record("bad")}, {record("d"), record("e")}});
        CHECK(outcomes[0]);
        CHECK(outcomes[1]);
        CHECK(outcomes[2].error().code == Errc::busy);
        CHECK(outcomes[3].error().code == Errc::busy);
        CHECK(outcomes[4]);
        const Records there{record("a"), record("b"), record("d"), record("e")};
        CHECK(client.records == there);
        CHECK(image->counters().refused == 2);
        const auto batches = image->counters().batches;
        CHECK(append(*image, {record("bad")}).error().code == Errc::busy); // nothing is written for it
        CHECK(image->counters().batches == batches);
        CHECK(image->writability() == Writability::appendable);
        close(*image);
        Careful after;
        image = open(disk, after).value();
        CHECK(after.records == there);
        close(*image);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: what a change was made from is asked for again, just before it is written") {
        FaultDisk disk;
        Careful client;
        auto image = started(disk, client);
        auto fine = run_task(loop, image->append_all({record("a")}, [] { return Result<void>{}; }));
        CHECK(fine);
        auto changed = run_task(loop, image->append_all({record("b")}, []() -> Result<void> {
            return make_error(Errc::busy, "it is not so any more");
        }));
        REQUIRE_FALSE(changed);
        CHECK(changed.error().code == Errc::busy);
        CHECK(client.records == Records{record("a")});
        close(*image);
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: a record that is durable and cannot be applied stops it, and the client is told") {
        FaultDisk disk;
        Careful client;
        client.careful = false;
        auto image = started(disk, client);
        CHECK_FALSE(append(*image, {record("bad")}));
        REQUIRE(client.stopped);
        CHECK(client.stopped->code == Errc::unavailable);
        CHECK(image->writability() == Writability::stopped);
        CHECK(append(*image, {record("a")}).error().code == Errc::unavailable);
        CHECK(run_task(loop, image->checkpoint()).has_error());
        CHECK(run_task(loop, image->grow(std::uint64_t{1} << 20)).has_error());
        CHECK(run_task(loop, image->settle()).has_error());
        close(*image);
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: a record of an older program that cannot follow is set aside, with what it came with") {
        struct Case {
            Records batch, kept;
        };
        for (const Case& c : {Case{{record("bad")}, {}}, Case{{record("b"), record("bad"), record("c")}, {record("b")}},
                              Case{{record("bad"), record("b"), record("bad")}, {}}}) {
            FaultDisk disk(broken_store(*this, {record("a")}, c.batch));
            Records expected{record("a")};
            expected.insert(expected.end(), c.kept.begin(), c.kept.end());
            for (int starts = 0; starts < 3; ++starts) { // it is gone from the disk
                lines.clear();
                Careful client;
                auto image = open(disk, client).value();
                CHECK(client.records == expected);
                CHECK((image->counters().set_aside != 0) == (starts == 0));
                const bool said = std::ranges::any_of(
                    lines, [](const std::string& l) { return l.find("set aside") != std::string::npos; });
                CHECK(said == (starts == 0));
                REQUIRE(append(*image, {record("x")}));
                expected.push_back(record("x"));
                close(*image);
            }
        }
    }

    TEST_CASE_FIXTURE(Fixture, "journal: nothing else is set aside") {
        // Not the last write.
        FaultDisk disk(broken_store(*this, {record("a")}, {record("bad")}));
        {
            struct Blind final : JournalClient { // applies all, so that it can write behind
                Records records;
                Result<void> apply(ByteView r) override {
                    records.push_back(to_bytes(r));
                    return {};
                }
                void snapshot(const std::function<void(ByteView)>& emit) override {
                    for (const Bytes& r : records) {
                        emit(r);
                    }
                }
                void snapshot_after(std::span<const ByteView> /*after*/,
                                    const std::function<void(ByteView)>& emit) override {
                    snapshot(emit);
                }
                Task<> gather(Task<Result<void>> /*everyone*/) override { co_return; }
                std::vector<Bytes> prologue(std::size_t /*count*/) override { return {}; }
                Task<Result<void>> before_acknowledge() override { co_return Result<void>{}; }
            } client;
            auto image = open(disk, client).value();
            REQUIRE(append(*image, {record("b")}));
            const Bytes behind = disk.content();
            REQUIRE(run_task(loop, image->checkpoint())); // in a checkpoint: neither
            close(*image);
            for (const Bytes& content : {behind, disk.content()}) {
                FaultDisk copy(content);
                Careful careful;
                CHECK(open(copy, careful).error().code == Errc::corrupt);
                CHECK(copy.content() == content);
            }
        }
        // A record that this program does not know.
        FaultDisk newer;
        Careful client;
        close(*[&] {
            auto image = started(newer, client);
            REQUIRE(append(*image, {record("new")}));
            return image;
        }());
        const Bytes before = newer.content();
        Careful old;
        old.knows_new = false;
        CHECK(open(newer, old).error().code == Errc::version);
        CHECK(newer.content() == before);
    }

    TEST_CASE_FIXTURE(Fixture, "journal: power goes while a record is set aside: the next start does it") {
        const Bytes broken = broken_store(*this, {record("a")}, {record("b"), record("bad")});
        bool reached_end = false;
        for (std::uint64_t at = 0; !reached_end; at += test::every) {
            FaultDisk disk(broken);
            disk.plan.die_at = at;
            Careful client;
            auto image = open(disk, client);
            reached_end = !disk.dead();
            if (image) {
                close(**image);
            }
            for (const auto& crash : test::crash_images(disk)) {
                CAPTURE(at);
                CAPTURE(crash.how);
                FaultDisk left(crash.content);
                Careful after;
                auto again = open(left, after);
                REQUIRE(again);
                CHECK(after.records == Records{record("a"), record("b")});
                close(**again);
            }
        }
    }

    TEST_CASE_FIXTURE(Fixture, "journal: full to the last byte it takes what does not make the state larger") {
        FaultDisk disk;
        Careful client;
        auto image = started(disk, client);
        const unsigned count = fill(*image);
        const Records full = client.records;
        CHECK(image->counters().checkpoint_bytes + 1024 > image->counters().half_bytes);
        // A restart is no problem, and so is what takes something away: one by one, all of it.
        close(*image);
        Careful again;
        image = open(disk, again).value();
        CHECK(again.records == full);
        for (unsigned i = 0; i < count; ++i) {
            REQUIRE(append(*image, {record(fmt::format("minus r{:07}", i))}));
        }
        REQUIRE(append(*image, {record("more", 3000)}));
        close(*image);
    }

    TEST_CASE_FIXTURE(Fixture,
                      "journal: any operation fails, or power goes, while a checkpoint makes a batch durable") {
        // Full, so that the next batch goes by a checkpoint.
        FaultDisk made;
        Careful first;
        auto image = started(made, first);
        (void)fill(*image);
        close(*image);
        const Records full = first.records;
        const Bytes content = made.content();
        const Bytes minus = record("minus r0000003");
        Records without = full;
        without.push_back(minus);
        auto is_old = [&](const Records& r) { return r == full || r == without; };
        auto is_new = [&](const Records& r) { return r.size() == full.size() - 1; };
        std::uint64_t last = 0;
        for (const bool dies : {true, false}) {
            for (std::uint64_t at = 0;; at += test::every) {
                FaultDisk disk(content);
                Careful client;
                auto opened = open(disk, client);
                REQUIRE(opened);
                const std::uint64_t when = disk.operations() + at;
                (dies ? disk.plan.die_at : disk.plan.fail_at) = when;
                disk.plan.fail_prefix = at % 2 == 0 ? 0 : 700;
                const auto outcome = append(**opened, {minus});
                const bool over = disk.operations() <= when;
                last = std::max(last, at);
                CAPTURE(at);
                if (!dies) { // it lives on, and says the truth
                    REQUIRE(run_task(loop, (*opened)->settle()));
                    if (outcome) {
                        CHECK(client.records.back() == minus);
                    } else if (outcome.error().code != Errc::unavailable) {
                        CHECK(client.records == full);
                    }
                    const Records memory = client.records;
                    close(**opened);
                    disk.plan = {};
                    Careful after;
                    auto again = open(disk, after);
                    REQUIRE(again);
                    CHECK((memory == full ? after.records == full : is_new(after.records)));
                    close(**again);
                } else {
                    close(**opened);
                    for (const auto& crash : test::crash_images(disk)) {
                        CAPTURE(crash.how);
                        FaultDisk left(crash.content);
                        Careful after;
                        auto again = open(left, after);
                        REQUIRE(again);
                        CHECK((outcome ? is_new(after.records) : is_old(after.records) || is_new(after.records)));
                        REQUIRE(append(**again, {record("minus r0000004")}));
                        close(**again);
                    }
                }
                if (over) {
                    break;
                }
            }
        }
        CHECK(last > 5);
    }
}

} // namespace store_journal_check_test
