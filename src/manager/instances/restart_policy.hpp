// When an instance that ended is started again. Pure.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <sysexits.h>

namespace vtpmd::manager {

/// How a child process ended.
struct ExitStatus {
    int code = 0;         ///< exit code, if signal is 0
    int signal = 0;       ///< that killed it
    bool unknown = false; ///< it was not this manager's child
    friend bool operator==(const ExitStatus&, const ExitStatus&) = default;
};

struct RestartPolicy {
    std::chrono::seconds first{1};
    std::chrono::seconds longest{60};
    /// An instance that served this long was fine: what ends it later is a new story.
    std::chrono::seconds healthy{60};

    struct Verdict {
        bool give_up = false;
        std::chrono::seconds wait{0};
        unsigned failures = 0; ///< in a row, to be handed in the next time
    };
    /// What the systemd units do not try again either: usage, data, no image, no permission, configuration.
    [[nodiscard]] static bool is_hopeless(int code) {
        return code == EX_USAGE || code == EX_DATAERR || code == EX_NOINPUT || code == EX_NOPERM || code == EX_CONFIG;
    }
    /// Good order (a guest's shutdown): at once. State that cannot be read or a command line that is wrong do not get better
    /// by trying: give up. Anything else, the lock of an image that is still held among them: again, slower each time.
    [[nodiscard]] Verdict after(ExitStatus status, std::chrono::steady_clock::duration served,
                                unsigned failures) const {
        const bool told = !status.unknown && status.signal == 0;
        if (told && status.code == EX_OK) {
            return {};
        }
        if (told && is_hopeless(status.code)) {
            return {.give_up = true, .wait = {}, .failures = failures + 1};
        }
        if (served >= healthy) {
            failures = 0;
        }
        auto wait = std::min(first * (1U << std::min(failures, 10U)), longest);
        return {.give_up = false, .wait = wait, .failures = failures + 1};
    }
};

} // namespace vtpmd::manager
