#include "util/service.hpp"

#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <fmt/format.h>
#include <systemd/sd-daemon.h>

namespace vtpmd {

namespace {

// A function of libsystemd, which is loaded only where a service manager has started us: it brings six libraries along,
// and an instance that a manager starts needs none of them. Null without such a service manager, and without the
// library.
template <typename Function>
Function* of_libsystemd(const char* variable, const char* name) {
    if (std::getenv(variable) == nullptr) { // NOLINT(concurrency-mt-unsafe): nobody changes the environment
        return nullptr;
    }
    static void* const library = ::dlopen("libsystemd.so.0", RTLD_NOW | RTLD_LOCAL);
    void* function = library == nullptr ? nullptr : ::dlsym(library, name);
    if (function == nullptr) {
        fmt::print(stderr, "{} is set, but libsystemd.so.0 has no {} here ({}); install the package libsystemd0\n",
                   variable, name,
                   library == nullptr ? ::dlerror() : "an old version"); // NOLINT(concurrency-mt-unsafe)
    }
    return reinterpret_cast<Function*>(function); // NOLINT(cppcoreguidelines-pro-type-reinterpret-cast): dlsym(3)
}

void notify(const char* state) {
    if (auto* send = of_libsystemd<decltype(sd_notify)>("NOTIFY_SOCKET", "sd_notify")) {
        (void)send(0, state);
    }
}

} // namespace

void notify_ready(const std::string& status) { notify(("READY=1\nSTATUS=" + status).c_str()); }

void notify_status(const std::string& status) { notify(("STATUS=" + status).c_str()); }

void notify_stopping() { notify("STOPPING=1"); }

std::vector<PassedSocket> take_passed_sockets() {
    auto* take = of_libsystemd<decltype(sd_listen_fds_with_names)>("LISTEN_FDS", "sd_listen_fds_with_names");
    if (take == nullptr) {
        return {};
    }
    char** names = nullptr;
    int count = take(1, &names);
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
