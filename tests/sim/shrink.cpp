#include "shrink.hpp"

#include "world.hpp"

#include <cstdlib>
#include <filesystem>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vtpmd::sim {

namespace {

struct Folder {
    Folder() {
        char in_memory[] = "/dev/shm/vtpmd-sim-XXXXXX";
        char on_disk[] = "/tmp/vtpmd-sim-XXXXXX";
        const char* made = ::mkdtemp(in_memory);
        made = made != nullptr ? made : ::mkdtemp(on_disk);
        if (made == nullptr) {
            throw std::runtime_error("no folder can be made");
        }
        path = made;
    }
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string path;
};

Verdict run_here(const Run& run, const std::string& folder, bool loud) {
    // Where it breaks the world is left as it is: its coroutines are in the middle of something.
    auto* world = new World(run.config, folder, loud);
    Verdict verdict;
    try {
        for (const Step& s : run.steps) {
            if (loud) {
                fmt::print("{}\n", to_string(s));
                std::fflush(stdout);
            }
            world->step(s);
        }
        if (loud) {
            fmt::print("audit\n");
        }
        world->audit();
        verdict.trace = world->trace();
        delete world;
    } catch (const std::exception& e) {
        verdict.broken = e.what();
    }
    return verdict;
}

/// What `work` writes to the descriptor, and how its process ended.
template <typename Work>
std::pair<std::string, int> apart(Work work) {
    int ends[2];
    if (::pipe(ends) != 0) {
        throw std::runtime_error("no pipe");
    }
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
        ::close(ends[0]);
        ::alarm(300);
        work(ends[1]);
        std::fflush(stdout);
        ::_exit(0);
    }
    ::close(ends[1]);
    std::string out;
    char part[4096];
    for (;;) {
        const auto n = ::read(ends[0], part, sizeof part);
        if (n <= 0) {
            break;
        }
        out.append(part, static_cast<std::size_t>(n));
    }
    ::close(ends[0]);
    int status = 0;
    (void)::waitpid(child, &status, 0);
    return {out, status};
}

void put(int to, const std::string& text) {
    if (::write(to, text.data(), text.size()) < 0) {
        ::_exit(3);
    }
}

std::string how_it_ended(int status) {
    return WIFSIGNALED(status) ? fmt::format("the program was ended by signal {}", WTERMSIG(status))
           : status != 0       ? fmt::format("the program ended with status {}", status)
                               : std::string();
}

/// "trace" or "! what".
Verdict verdict_of(const std::string& line, int status) {
    Verdict v;
    if (line.starts_with("!")) {
        v.broken = line.substr(1);
    } else if (line.empty()) {
        v.broken = how_it_ended(status);
        if (v.broken.empty()) {
            v.broken = "the program ended without a verdict";
        }
    } else {
        v.trace = std::stoull(line);
    }
    return v;
}

std::string line_of(const Verdict& v) { return v.broken.empty() ? std::to_string(v.trace) : "!" + v.broken; }

} // namespace

Verdict try_run(const Run& run, bool loud) {
    const Folder folder;
    const auto [out, status] = apart([&](int to) { put(to, line_of(run_here(run, folder.path, loud))); });
    return verdict_of(out, status);
}

Batch try_seeds(std::uint64_t first, std::uint64_t count, std::uint32_t length, bool loud) {
    const Folder folder;
    const auto [out, status] = apart([&](int to) {
        for (std::uint64_t k = 0; k < count; ++k) {
            if (loud) {
                fmt::print("--- seed {}\n", first + k);
            }
            const Verdict v = run_here(make_run(first + k, length), folder.path, loud);
            put(to, line_of(v) + "\n");
            if (!v.broken.empty()) {
                return;
            }
        }
    });
    Batch batch;
    std::size_t at = 0;
    while (at < out.size()) {
        const std::size_t end = out.find('\n', at);
        ++batch.tried;
        batch.verdict = verdict_of(out.substr(at, end - at), 0);
        if (!batch.verdict.broken.empty() || end == std::string::npos) {
            return batch;
        }
        at = end + 1;
    }
    if (batch.tried < count) {
        ++batch.tried;
        batch.verdict = verdict_of("", status);
    }
    return batch;
}

Run shrink(Run run) {
    const std::string first = try_run(run, false).broken;
    // The same kind of breach: its words up to the first number.
    const auto kind = [](const std::string& what) {
        std::string out;
        for (const char c : what) {
            if (out.size() < 60) {
                out += c >= '0' && c <= '9' ? '#' : c;
            }
        }
        return out.substr(0, 40);
    };
    const auto breaks = [&](const std::vector<Step>& steps) {
        const Run candidate{.config = run.config, .steps = steps};
        const std::string broken = try_run(candidate, false).broken;
        return !broken.empty() && kind(broken) == kind(first);
    };
    std::vector<Step> steps = run.steps;
    std::size_t parts = 2;
    unsigned tries = 0;
    while (steps.size() >= 2 && tries < 2000) {
        const std::size_t size = (steps.size() + parts - 1) / parts;
        bool shorter = false;
        for (std::size_t from = 0; from < steps.size() && tries < 2000; from += size, ++tries) {
            std::vector<Step> without(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(from));
            without.insert(without.end(),
                           steps.begin() + static_cast<std::ptrdiff_t>(std::min(steps.size(), from + size)),
                           steps.end());
            if (breaks(without)) {
                steps = std::move(without);
                parts = std::max<std::size_t>(parts - 1, 2);
                shorter = true;
                break;
            }
        }
        if (!shorter) {
            if (size == 1) {
                break;
            }
            parts = std::min(steps.size(), parts * 2);
        }
    }
    // Then each is given all the time it wants, where that does not matter.
    for (Step& s : steps) {
        const auto before = s.turns;
        s.turns = Step::until_done;
        if (before != s.turns && !breaks(steps)) {
            s.turns = before;
        }
    }
    run.steps = std::move(steps);
    return run;
}

} // namespace vtpmd::sim
