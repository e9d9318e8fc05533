#include "check.hpp"
#include "util/pid_file.hpp"
#include "util/unix_socket.hpp"

#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sys/stat.h>
#include <unistd.h>

namespace pid_file_test {

using namespace vtpmd;
namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
}

TEST_SUITE("util") {
    TEST_CASE("a pid file is there as long as it lives, and is nobody else's to lose") {
        const fs::path folder = fs::temp_directory_path() / ("vtpmd-pid-" + std::to_string(::getpid()));
        fs::create_directory(folder);
        const fs::path path = folder / "pid";
        std::ofstream(path) << "what a longer number left behind";
        {
            auto file = PidFile::write(path);
            REQUIRE(file.has_value());
            CHECK(content_of(path) == std::to_string(::getpid()) + "\n");
            struct stat st {};
            REQUIRE(::stat(path.c_str(), &st) == 0);
            CHECK((st.st_mode & 0777) == 0644);
        }
        CHECK_FALSE(fs::exists(path));
        {
            auto file = PidFile::write(path);
            REQUIRE(file.has_value());
            fs::rename(path, folder / "away"); // the inode stays taken
            std::ofstream(path) << "another's";
        }
        CHECK(content_of(path) == "another's");
        fs::remove(path);
        fs::create_symlink(folder / "target", path);
        CHECK(PidFile::write(path).has_error());
        CHECK_FALSE(fs::exists(folder / "target"));
        CHECK(PidFile::write(folder / "no" / "such").error().code == Errc::not_found);
        fs::remove_all(folder);
    }
    TEST_CASE("a pid goes into a pipe, too") {
        int ends[2] = {-1, -1};
        REQUIRE(::pipe(ends) == 0);
        CHECK(PidFile::write("/dev/fd/" + std::to_string(ends[1])).has_value());
        char text[32] = {};
        CHECK(::read(ends[0], text, sizeof text) > 0);
        CHECK(std::stol(text) == ::getpid());
        ::close(ends[0]);
        ::close(ends[1]);
    }
    TEST_CASE("a group by its name, or by its number") {
        CHECK(find_group("root") == gid_t{0});
        CHECK(find_group("0") == gid_t{0});
        CHECK(find_group("64999") == gid_t{64999});
        CHECK_FALSE(find_group("no-such-group"));
        CHECK_FALSE(find_group("4294967295")); // (gid_t)-1 means nobody
        CHECK_FALSE(find_group("-1"));
        CHECK_FALSE(find_group(""));
    }
}

} // namespace pid_file_test
