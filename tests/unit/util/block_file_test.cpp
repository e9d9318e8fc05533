#include "util/block_file.hpp"

#include "check.hpp"
#include "run_task.hpp"
#include "util/block_file_queue.hpp"
#include "util/deadline.hpp"

#include <algorithm>
#include <array>

#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace util_block_file_test {

using namespace vtpmd;
using test::run_task;

namespace {

/// A directory of its own, gone with it.
struct Directory {
    Directory() {
        std::string name = (std::filesystem::temp_directory_path() / "vtpmd-block-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path = name;
    }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { std::filesystem::remove_all(path); }
    [[nodiscard]] std::string file(const char* name) const { return (path / name).string(); }
    std::filesystem::path path;
};

struct Fixture {
    asio::io_context loop;
    Directory dir;
    std::unique_ptr<BlockIo> io = make_block_io(loop.get_executor()).value();
};

Bytes pattern(std::size_t n, unsigned seed) {
    Bytes out(n);
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = static_cast<std::byte>(seed + i * 7);
    }
    return out;
}

} // namespace

TEST_SUITE("util") {
    TEST_CASE_FIXTURE(Fixture, "block file: what is written is read back, also through a new handle") {
        const Bytes data = pattern(100'000, 3);
        {
            auto file = io->open(dir.file("a"), OpenMode::create).value();
            CHECK(file->size() == 0);
            REQUIRE(run_task(loop, file->allocate(0, 8192)));
            CHECK(file->size() == 8192);
            REQUIRE(run_task(loop, file->write(4096, data)));
            REQUIRE(run_task(loop, file->sync()));
            REQUIRE(run_task(loop, file->write_sync(1, ByteView(data).first(10))));
            CHECK(file->size() == 4096 + data.size());
        }
        auto file = io->open(dir.file("a"), OpenMode::existing).value();
        CHECK(file->size() == 4096 + data.size());
        Bytes back(data.size());
        REQUIRE(run_task(loop, file->read(4096, back)));
        CHECK(back == data);
        Bytes head(12);
        REQUIRE(run_task(loop, file->read(0, head)));
        CHECK(head[0] == std::byte{0});
        CHECK(std::ranges::equal(ByteView(head).subspan(1, 10), ByteView(data).first(10)));
        CHECK(head[11] == std::byte{0});
    }

    TEST_CASE_FIXTURE(Fixture, "block file: a read beyond the end is an error that says where") {
        auto file = io->open(dir.file("a"), OpenMode::create).value();
        REQUIRE(run_task(loop, file->write(0, pattern(100, 1))));
        Bytes into(200);
        auto read = run_task(loop, file->read(0, into));
        REQUIRE_FALSE(read);
        CHECK(read.error().code == Errc::io);
        CHECK(read.error().message.find("offset 100") != std::string::npos);
    }

    TEST_CASE_FIXTURE(Fixture, "block file: a new file is for its owner only, a missing one is not made") {
        CHECK(io->open(dir.file("none"), OpenMode::existing).error().code == Errc::not_found);
        CHECK_FALSE(std::filesystem::exists(dir.file("none")));
        auto file = io->open(dir.file("a"), OpenMode::create).value();
        struct stat st {};
        REQUIRE(::stat(dir.file("a").c_str(), &st) == 0);
        CHECK((st.st_mode & 07777) == 0600);
        CHECK(io->open(dir.path.string(), OpenMode::existing).has_error());
        CHECK(io->open("/dev/null", OpenMode::existing).error().code == Errc::usage);
    }

    TEST_CASE_FIXTURE(Fixture, "block file: one opener at a time, and the lock dies with its process") {
        {
            auto file = io->open(dir.file("a"), OpenMode::create).value();
            auto second = io->open(dir.file("a"), OpenMode::existing);
            REQUIRE_FALSE(second);
            CHECK(second.error().code == Errc::busy);
            CHECK(second.error().message.find(dir.file("a")) != std::string::npos);
        }
        std::array<int, 2> ready{};
        std::array<int, 2> proceed{};
        REQUIRE(::pipe(ready.data()) == 0);
        REQUIRE(::pipe(proceed.data()) == 0);
        const pid_t child = ::fork();
        if (child == 0) {
            // No loop in the child: open(2) and the lock need none, and it must not touch the parent's ring.
            const int fd = ::open(dir.file("a").c_str(), O_RDWR);
            struct flock whole {};
            whole.l_type = F_WRLCK;
            whole.l_len = off_t{1} << 62;
            struct flock marker = whole;
            marker.l_start = whole.l_len;
            marker.l_len = 1;
            bool ok = ::fcntl(fd, F_OFD_SETLK, &whole) == 0 && ::fcntl(fd, F_SETLK, &marker) == 0;
            (void)!::write(ready[1], ok ? "y" : "n", 1);
            (void)!::read(proceed[0], &ok, 1);
            // As when the process has ended and the kernel still finishes its requests: its own locks are gone.
            marker.l_type = F_UNLCK;
            ok = ::fcntl(fd, F_SETLK, &marker) == 0;
            (void)!::write(ready[1], ok ? "y" : "n", 1);
            ::pause();
            ::_exit(0);
        }
        char locked = 0;
        REQUIRE(::read(ready[0], &locked, 1) == 1);
        CHECK(locked == 'y');
        auto taken = io->open(dir.file("a"), OpenMode::existing);
        REQUIRE_FALSE(taken);
        CHECK(taken.error().code == Errc::busy);
        CHECK(taken.error().message.find(fmt::format("pid {}", child)) != std::string::npos);
        REQUIRE(::write(proceed[1], "p", 1) == 1);
        REQUIRE(::read(ready[0], &locked, 1) == 1);
        CHECK(locked == 'y');
        CHECK(io->open(dir.file("a"), OpenMode::existing).error().code == Errc::lingering);
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        CHECK(io->open(dir.file("a"), OpenMode::existing).has_value());
        for (int fd : {ready[0], ready[1], proceed[0], proceed[1]}) {
            ::close(fd);
        }
    }

    TEST_CASE_FIXTURE(Fixture, "block file: more operations at once than the ring has entries") {
        auto file = io->open(dir.file("a"), OpenMode::create).value();
        constexpr int count = 300;
        int done = 0;
        auto one = [](BlockFile& f, int i, int& finished) -> Task<> {
            const Bytes data(16, static_cast<std::byte>(i));
            const std::uint64_t at = static_cast<std::uint64_t>(i) * 16;
            auto written = i % 3 == 0 ? f.write_sync(at, data) : f.write(at, data);
            finished += (co_await std::move(written)).has_value() ? 1 : 0;
        };
        for (int i = 0; i < count; ++i) {
            asio::co_spawn(loop, one(*file, i, done), [](std::exception_ptr e) { CHECK_FALSE(e); });
        }
        loop.restart();
        loop.run();
        CHECK(done == count);
        Bytes all(count * 16);
        REQUIRE(run_task(loop, file->read(0, all)));
        for (std::size_t i = 0; i < all.size(); ++i) {
            REQUIRE(all[i] == static_cast<std::byte>(i / 16));
        }
    }

    TEST_CASE_FIXTURE(Fixture, "block file: a cancelled task waits for its write and learns what became of it") {
        auto file = io->open(dir.file("a"), OpenMode::create).value();
        const Bytes data = pattern(1'000'000, 9);
        bool told = false;
        bool next_threw = false;
        auto body = [](BlockFile& f, const Bytes& d, bool& ok, bool& threw) -> Task<> {
            ok = (co_await f.write_sync(0, d)).has_value();
            try {
                (void)co_await f.sync();
            } catch (const boost::system::system_error& e) {
                threw = e.code() == asio::error::operation_aborted;
            }
        };
        asio::cancellation_signal signal;
        asio::co_spawn(loop, body(*file, data, told, next_threw),
                       asio::bind_cancellation_slot(signal.slot(), [](std::exception_ptr e) { CHECK_FALSE(e); }));
        asio::post(loop, [&] { signal.emit(asio::cancellation_type::terminal); });
        loop.restart();
        loop.run();
        CHECK(told);
        CHECK(next_threw);
    }

    TEST_CASE("block file: the ring may go while operations are in flight") {
        Directory dir;
        auto loop = std::make_unique<asio::io_context>();
        auto io = make_block_io(loop->get_executor()).value();
        auto file = io->open(dir.file("a"), OpenMode::create).value();
        auto body = [](BlockFile& f) -> Task<> {
            const Bytes data(1 << 20, std::byte{1}); // freed with the frame: the kernel must be done with it by then
            (void)co_await f.write_sync(0, data);
            FAIL("the loop never runs again");
        };
        asio::co_spawn(*loop, body(*file), [](const std::exception_ptr& /*ended*/) {});
        loop->poll_one();
        io.reset();
        file.reset();
        loop.reset();
    }

    TEST_CASE_FIXTURE(Fixture, "block file: the thread that stands in for io_uring does the same") {
        auto queue = make_thread_queue(loop.get_executor());
        const int fd = ::open(dir.file("t").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        REQUIRE(fd >= 0);
        Bytes data = pattern(5000, 4);
        Bytes back(5000);
        auto body = [](BlockQueue& q, int f, Bytes& d, Bytes& b) -> Task<bool> {
            auto submit = [](auto handler, BlockQueue* to, BlockOperation* op) {
                op->done = std::move(handler);
                to->submit(*op);
            };
            using Signature = void(BlockOutcome);
            using Kind = BlockOperation::Kind;
            BlockOperation allocate{Kind::allocate, f, 0, nullptr, 8192, {}, {}, 0};
            BlockOperation write{Kind::write_sync, f, 100, d.data(), d.size(), {}, {}, 0};
            BlockOperation read{Kind::read, f, 100, b.data(), b.size(), {}, {}, 0};
            BlockOperation bad{Kind::sync, -1, 0, nullptr, 0, {}, {}, 0};
            for (BlockOperation* op : {&allocate, &write, &read, &bad}) {
                (void)co_await asio::async_initiate<const asio::use_awaitable_t<>, Signature>(
                    submit, asio::use_awaitable, &q, op);
            }
            co_return allocate.outcome.transfer == 0 && write.outcome.transfer == 5000 && write.outcome.sync == 0 &&
                read.outcome.transfer == 5000 && bad.outcome.transfer == -EBADF;
        };
        CHECK(run_task(loop, body(*queue, fd, data, back)));
        CHECK(back == data);
        ::close(fd);
    }
}

} // namespace util_block_file_test
