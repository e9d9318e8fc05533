// A process that has no file descriptors left.
#pragma once

#include "util/fd.hpp"

#include <boost/system/error_code.hpp>
#include <cerrno>
#include <sys/resource.h>
#include <unistd.h>

namespace vtpmd::fakes {

/// While it lives, nothing can be opened. `open` is a descriptor of this process.
class NoDescriptors {
  public:
    explicit NoDescriptors(int open) {
        // UBSan looks at an object's type by a pipe of its own the first time: it must have done so while there are descriptors.
        (void)boost::system::error_code(EMFILE, boost::system::system_category()).message();
        ::getrlimit(RLIMIT_NOFILE, &before_);
        const int next = UniqueFd(::dup(open)).get();
        const rlimit tight{static_cast<rlim_t>(next), before_.rlim_max};
        ::setrlimit(RLIMIT_NOFILE, &tight);
    }
    ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
    NoDescriptors(const NoDescriptors&) = delete;
    NoDescriptors& operator=(const NoDescriptors&) = delete;

  private:
    rlimit before_{};
};

} // namespace vtpmd::fakes
