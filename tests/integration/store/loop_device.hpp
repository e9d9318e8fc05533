// A loop device over a file of its own; both are gone with it.
#pragma once

#include "util/fd.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <linux/loop.h>
#include <stdexcept>
#include <string>
#include <sys/ioctl.h>
#include <unistd.h>

namespace vtpmd::test {

class LoopDevice {
  public:
    explicit LoopDevice(std::uint64_t size) {
        std::string name = (std::filesystem::temp_directory_path() / "vtpmd-loop-XXXXXX").string();
        backing_.reset(::mkostemp(name.data(), O_CLOEXEC));
        // The loop device keeps the file; its name is not needed.
        if (!backing_ || ::unlink(name.c_str()) < 0 || ::ftruncate(backing_.get(), static_cast<off_t>(size)) < 0) {
            fail("backing file");
        }
        const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
        if (!control) {
            fail("/dev/loop-control");
        }
        // Another process may take the free number first.
        for (int tries = 0; tries < 20; ++tries) {
            const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
            if (number < 0) {
                fail("LOOP_CTL_GET_FREE");
            }
            path_ = "/dev/loop" + std::to_string(number);
            device_.reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
            if (!device_) {
                fail(path_.c_str());
            }
            if (::ioctl(device_.get(), LOOP_SET_FD, backing_.get()) == 0) {
                return;
            }
            if (errno != EBUSY) {
                fail("LOOP_SET_FD");
            }
        }
        fail("LOOP_SET_FD");
    }
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;
    ~LoopDevice() { (void)::ioctl(device_.get(), LOOP_CLR_FD, 0); }

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] int fd() const { return device_.get(); }

    /// Empty if loop devices can be made, else why not.
    static std::string unusable() {
        try {
            const LoopDevice probe(1 << 20);
        } catch (const std::exception& e) {
            return e.what();
        }
        return {};
    }

  private:
    [[noreturn]] static void fail(const char* what) {
        throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
    }
    UniqueFd backing_;
    UniqueFd device_;
    std::string path_;
};

} // namespace vtpmd::test
