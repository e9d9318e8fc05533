#include "util/service.hpp"

#include <algorithm>
#include <cstdlib>
#include <systemd/sd-daemon.h>

namespace vtpmd {

void notify_ready(const std::string& status) {
    std::string text = "READY=1\nSTATUS=" + status;
    (void)sd_notify(0, text.c_str());
}

void notify_stopping() { (void)sd_notify(0, "STOPPING=1"); }

std::vector<PassedSocket> take_passed_sockets() {
    char** names = nullptr;
    int count = sd_listen_fds_with_names(1, &names);
    std::vector<PassedSocket> out;
    out.reserve(static_cast<std::size_t>(std::max(count, 0)));
    for (int i = 0; i < count; ++i) {
        out.push_back({UniqueFd(SD_LISTEN_FDS_START + i), names != nullptr ? names[i] : "unknown"});
    }
    if (names != nullptr) {
        for (char** n = names; *n != nullptr; ++n) {
            std::free(*n); // NOLINT: allocated by libsystemd
        }
        std::free(static_cast<void*>(names));
    }
    return out;
}

} // namespace vtpmd
