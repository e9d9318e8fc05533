#include "util/last_words.hpp"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

namespace vtpmd {

void leave_last_words(std::string_view text) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody changes the environment
    const char* value = std::getenv(std::string(last_words_variable).c_str());
    const int fd = value == nullptr ? -1 : std::atoi(value); // NOLINT(cert-err34-c): fstat() tells a wrong one
    struct stat st {};
    if (fd <= STDERR_FILENO || ::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return;
    }
    const auto room = static_cast<std::size_t>(std::max<off_t>(st.st_size, 0)); // it cannot grow
    if (::pwrite(fd, text.data(), std::min(text.size(), room), 0) < 0) {
        return; // there is nobody to tell: the process ends
    }
}

} // namespace vtpmd
