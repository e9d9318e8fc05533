// A listening Unix socket of a process that has ended, which the kernel has not closed yet: here, because we hold it too.
#pragma once

#include "check.hpp"
#include "util/fd.hpp"

#include <algorithm>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vtpmd::fakes {

class DeadListener {
  public:
    explicit DeadListener(const std::string& path)
        : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        REQUIRE(path.size() < sizeof address.sun_path);
        std::copy(path.begin(), path.end(), address.sun_path);
        REQUIRE(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
        child_ = ::fork();
        if (child_ == 0) {
            ::_exit(::listen(fd_.get(), 4) == 0 ? 0 : 1); // who calls it is who a peer sees
        }
        siginfo_t info{};
        REQUIRE(::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOWAIT) == 0);
        REQUIRE(info.si_status == 0);
    }
    DeadListener(const DeadListener&) = delete;
    DeadListener& operator=(const DeadListener&) = delete;
    ~DeadListener() { reap(); }

    /// Until then it is a zombie.
    void reap() {
        if (child_ > 0) {
            (void)::waitpid(child_, nullptr, 0);
            child_ = 0;
        }
    }
    /// The kernel is done with it.
    void close() { fd_.reset(); }

  private:
    UniqueFd fd_;
    pid_t child_ = 0;
};

} // namespace vtpmd::fakes
