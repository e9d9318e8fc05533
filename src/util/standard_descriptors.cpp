#include "util/standard_descriptors.hpp"

#include <fcntl.h>
#include <unistd.h>

namespace vtpmd {

bool open_standard_descriptors() noexcept {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
        if (::fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", O_RDWR) != fd) { // the lowest that is free: this one
            return false;
        }
    }
    return true;
}

} // namespace vtpmd
