#include "swtpm_process.hpp"

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <spawn.h>
#include <stdexcept>
#include <string_view>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern char** environ;

namespace vtpmd::fakes {

namespace {

/// A socket that exists is only bound; to connect before listen() is refused. /proc/net/unix has the flag.
bool listening(const std::string& path) {
    constexpr std::string_view accepts = " 00010000 "; // __SO_ACCEPTCON
    std::ifstream table("/proc/net/unix");
    for (std::string line; std::getline(table, line);) {
        if (line.ends_with(" " + path) && line.find(accepts) != std::string::npos) {
            return true;
        }
    }
    return false;
}

} // namespace

TempDir::TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "vtpmd-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
        throw std::runtime_error("mkdtemp " + pattern);
    }
    path_ = pattern;
}

TempDir::~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

SwtpmProcess::SwtpmProcess(Config config)
    : config_(config) {
    std::filesystem::create_directory(state_dir());
    start();
}

SwtpmProcess::~SwtpmProcess() { stop(); }

void SwtpmProcess::start() {
    std::vector<std::string> words = {"swtpm",      "socket",
                                      "--tpmstate", "dir=" + state_dir().string(),
                                      "--server",   "type=unixio,path=" + socket(),
                                      "--ctrl",     "type=unixio,path=" + socket() + ".ctrl",
                                      "--log",      "file=" + (dir_.path() / "log").string(),
                                      "--locality", "allow-set-locality"};
    if (config_.version == TpmVersion::tpm20) {
        words.emplace_back("--tpm2");
    }
    if (config_.powered) {
        words.emplace_back("--flags");
        words.emplace_back("not-need-init,startup-clear");
    }
    std::filesystem::remove(socket());
    std::filesystem::remove(socket() + ".ctrl");
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& w : words) {
        argv.push_back(w.data());
    }
    argv.push_back(nullptr);
    // Not our standard streams: whoever reads them would wait for swtpm too if the test dies.
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    }
    const int spawned = ::posix_spawnp(&pid_, "swtpm", &files, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    if (spawned != 0) {
        throw std::runtime_error("swtpm is not installed");
    }
    for (int i = 0; i < 2000; ++i) {
        if (listening(socket()) && listening(socket() + ".ctrl")) {
            return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    throw std::runtime_error("swtpm did not come up");
}

void SwtpmProcess::stop() {
    if (pid_ > 0) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
}

} // namespace vtpmd::fakes
