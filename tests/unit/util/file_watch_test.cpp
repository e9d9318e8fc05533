// A file that is pulled away from under the process that writes it, in every way that was thought of.
#include "util/file_watch.hpp"

#include "check.hpp"
#include "run_task.hpp"
#include "util/block_file.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sched.h>
#include <string>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace util_file_watch_test {

using namespace vtpmd;
using test::run_task;
namespace fs = std::filesystem;

namespace {

struct Fixture {
    Fixture() {
        std::string name = (fs::temp_directory_path() / "vtpmd-watch-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        root = name;
        fs::create_directory(root / "dir");
        path = (root / "dir" / "image").string();
        file = io->open(path, OpenMode::create).value();
        REQUIRE(run_task(loop, file->allocate(0, 16384)));
        REQUIRE(save(1));
    }
    Fixture(const Fixture&) = delete;
    Fixture& operator=(const Fixture&) = delete;
    ~Fixture() { fs::remove_all(root); }

    Result<void> save(unsigned mark) {
        return run_task(loop, file->write_sync(4096, Bytes(100, static_cast<std::byte>(mark))));
    }
    /// Somebody else's file, with a time that is not that of ours.
    static void put(const std::string& where, std::size_t size, char what, bool in_place) {
        std::ofstream out(where, in_place ? std::ios::binary | std::ios::in | std::ios::out
                                          : std::ios::binary | std::ios::trunc);
        out << std::string(size, what);
        out.close();
        age(where);
    }
    static void age(const std::string& where) {
        fs::last_write_time(where, fs::last_write_time(where) + std::chrono::seconds(7));
    }
    /// A refusal that names the file and `word`, twice the same, and with nothing written.
    void check_refused(std::string_view word) {
        for (unsigned n = 0; n < 2; ++n) {
            auto refused = save(9);
            REQUIRE_FALSE(refused);
            CHECK(pulled_away(refused.error()));
            CHECK(refused.error().message.find(path) != std::string::npos);
            CHECK_MESSAGE(refused.error().message.find(word) != std::string::npos, refused.error().message);
        }
    }

    asio::io_context loop;
    std::unique_ptr<BlockIo> io = make_block_io(loop.get_executor()).value();
    fs::path root;
    std::string path;
    std::unique_ptr<BlockFile> file;
};

} // namespace

TEST_SUITE("util") {
    TEST_CASE_FIXTURE(Fixture, "file pulled away: unlinked, refused, and what was acknowledged is beside it") {
        fs::remove(path);
        check_refused(".rescued");
        Bytes saved(16384);
        std::ifstream(path + ".rescued", std::ios::binary).read(reinterpret_cast<char*>(saved.data()), 16384);
        CHECK(saved[4096] == std::byte{9}); // the save that found it: there or not, but whole
        CHECK(fs::file_size(path + ".rescued") == 16384);
        struct stat st {};
        REQUIRE(::stat((path + ".rescued").c_str(), &st) == 0);
        CHECK((st.st_mode & 0777) == 0600);
        CHECK_FALSE(fs::exists(path + ".rescued.1")); // once
    }

    TEST_CASE_FIXTURE(Fixture,
                      "file pulled away: the copy never goes over a file, and without room the message says where") {
        put(path + ".rescued", 10, 'x', false);
        fs::remove(path);
        check_refused(".rescued.1");
        CHECK(fs::file_size(path + ".rescued") == 10);
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: its whole directory is deleted") {
        fs::remove_all(root / "dir");
        check_refused(fmt::format("/proc/{}/fd/", ::getpid()));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: another is renamed over it") {
        put(path + ".new", 16384, 'o', false);
        fs::rename(path + ".new", path);
        check_refused("renamed over it");
        CHECK(fs::exists(path + ".rescued"));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: renamed, and it goes on when it is put back") {
        fs::rename(path, path + ".away");
        check_refused("not at its path");
        put(path, 16384, 'o', false);
        check_refused("another file is at its path");
        fs::rename(path + ".away", path);
        CHECK(save(2));
        CHECK_FALSE(fs::exists(path + ".rescued")); // it had a name all the time
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: its directory is renamed, and it goes on when it is put back") {
        fs::rename(root / "dir", root / "elsewhere");
        check_refused("its directory was");
        fs::create_directory(root / "dir");
        put(path, 16384, 'o', false);
        check_refused("another file is at its path");
        fs::remove_all(root / "dir");
        fs::rename(root / "elsewhere", root / "dir");
        CHECK(save(2));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: a hard link keeps the inode, not the path") {
        fs::create_hard_link(path, root / "link");
        CHECK(save(2)); // one more name is no matter
        fs::remove(path);
        check_refused("not at its path");
        CHECK_FALSE(fs::exists(path + ".rescued"));
        fs::create_hard_link(root / "link", path);
        CHECK(save(3));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: opened by a symbolic link that then points elsewhere") {
        file.reset();
        fs::create_symlink(path, root / "link");
        file = io->open((root / "link").string(), OpenMode::existing).value();
        path = (root / "link").string();
        CHECK(save(2));
        fs::remove(root / "link");
        put((root / "other").string(), 16384, 'o', false);
        fs::create_symlink(root / "other", root / "link");
        check_refused("another file is at its path");
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: something is mounted over its directory") {
        // In a mount namespace of its own, so in a process of its own; its loop is made there.
        file.reset();
        io.reset();
        fs::create_directory(root / "over");
        const pid_t child = ::fork();
        if (child == 0) {
            if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
                ::_exit(2);
            }
            asio::io_context mine;
            auto ring = make_block_io(mine.get_executor());
            auto opened = (*ring)->open(path, OpenMode::existing).value();
            const Bytes data(100, std::byte{5});
            const bool before = run_task(mine, opened->write_sync(4096, data)).has_value();
            const bool mounted =
                ::mount((root / "over").c_str(), (root / "dir").c_str(), nullptr, MS_BIND, nullptr) == 0;
            const auto covered = run_task(mine, opened->write_sync(4096, data));
            (void)::umount((root / "dir").c_str());
            const bool after = run_task(mine, opened->write_sync(4096, data)).has_value();
            ::_exit(before && mounted && covered.has_error() && pulled_away(covered.error()) && after ? 0 : 1);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK(WEXITSTATUS(status) == 0);
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: copied over in place is told once, and then made good") {
        put(path, 16384, 'o', true);
        auto told = save(2);
        REQUIRE_FALSE(told);
        CHECK(pulled_away(told.error()));
        CHECK(told.error().message.find("another program has written into it") != std::string::npos);
        CHECK(save(3));
        CHECK_FALSE(fs::exists(path + ".rescued"));
        Bytes back(100);
        REQUIRE(run_task(loop, file->read(4096, back)));
        CHECK(back == Bytes(100, std::byte{3}));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: copied over before anything was written by this process") {
        file.reset();
        file = io->open(path, OpenMode::existing).value();
        Bytes state(100);
        REQUIRE(run_task(loop, file->read(4096, state)));
        put(path, 16384, 'o', true);
        CHECK(pulled_away(save(2).error()));
        CHECK(save(3));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: cut short") {
        fs::resize_file(path, 4096 + 100);
        age(path);
        check_refused("cut it short");
        fs::resize_file(path, 16384);
        age(path);
        CHECK(save(2)); // what was written last is there
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: what only looks so goes on") {
        age(path); // touched
        CHECK(save(2));
        { // the same bytes written by somebody else
            std::ofstream out(path, std::ios::binary | std::ios::in | std::ios::out);
            out.seekp(4096);
            out << std::string(100, '\2');
        }
        age(path);
        CHECK(save(3));
        fs::permissions(path, fs::perms::owner_read);
        CHECK(save(4));
        fs::create_hard_link(path, root / "second");
        fs::remove(root / "second");
        CHECK(save(5));
    }

    TEST_CASE_FIXTURE(Fixture, "file pulled away: its copies are frozen: no write, sync or allocation changes them") {
        fs::rename(path, path + ".away");
        check_refused("not at its path");
        const Bytes data(50, std::byte{7});
        CHECK(pulled_away(run_task(loop, file->write(0, data)).error()));
        CHECK(pulled_away(run_task(loop, file->sync()).error()));
        CHECK(pulled_away(run_task(loop, file->allocate(16384, 4096)).error()));
        CHECK(fs::file_size(path + ".away") == 16384);
        Bytes head(50);
        REQUIRE(run_task(loop, file->read(0, head))); // reading goes on
        CHECK(head == Bytes(50));
    }

    TEST_CASE("file pulled away: an error of the disk is none of it") {
        CHECK_FALSE(pulled_away(errno_error(EIO, "x")));
        CHECK_FALSE(pulled_away(make_error(Errc::unavailable, "x")));
        CHECK(pulled_away(in_context(errno_error(ESTALE, "x"), "saving")));
    }
}

} // namespace util_file_watch_test
