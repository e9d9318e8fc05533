// vtpmd-sim: runs of the simulated host, from seeds. A run that breaks an invariant is shrunk and printed.
#include "shrink.hpp"

#include <chrono>
#include <cstdlib>
#include <fmt/core.h>
#include <fstream>
#include <iterator>
#include <random>

namespace {

using namespace vtpmd::sim;

struct Wish {
    std::uint64_t seed = 0;
    std::uint64_t seeds = 0; ///< 0: as many as the time allows
    std::uint32_t ops = 100;
    std::uint32_t seconds = 60;
    std::string kept; ///< a file of runs that failed once
    std::string run;  ///< one run, given as it is printed
    bool loud = false, shrink = true, go_on = false;
    bool twice = false; ///< each seed, and it must come to the same
};

bool take(std::string_view word, std::string_view name, std::string& into) {
    if (!word.starts_with(name)) {
        return false;
    }
    into = word.substr(name.size());
    return true;
}

constexpr const char* usage =
    "usage: vtpmd-sim [--seed=S] [--seeds=N] [--ops=M] [--seconds=T] [--kept=FILE] [--run=RUN] [--loud] [--no-shrink]\n"
    "                 [--go-on] [--twice]\n"
    "Runs N seeds from S on (without --seed: fresh ones; without --seeds: for T seconds) of M steps each; FILE's runs "
    "first.\n";

std::optional<Wish> parse(int argc, char** argv) {
    Wish wish;
    for (int k = 1; k < argc; ++k) {
        const std::string_view word = argv[k];
        std::string value;
        if (take(word, "--seed=", value)) {
            wish.seed = std::stoull(value);
        } else if (take(word, "--seeds=", value)) {
            wish.seeds = std::stoull(value);
        } else if (take(word, "--ops=", value)) {
            wish.ops = static_cast<std::uint32_t>(std::stoul(value));
        } else if (take(word, "--seconds=", value)) {
            wish.seconds = static_cast<std::uint32_t>(std::stoul(value));
        } else if (take(word, "--kept=", value)) {
            wish.kept = value;
        } else if (take(word, "--run=", value)) {
            wish.run = value;
        } else if (word == "--loud") {
            wish.loud = true;
        } else if (word == "--no-shrink") {
            wish.shrink = false;
        } else if (word == "--twice") {
            wish.twice = true;
        } else if (word == "--go-on") {
            wish.go_on = true;
        } else {
            return std::nullopt;
        }
    }
    return wish;
}

/// False: it broke.
bool report(const Run& run, const Verdict& verdict, std::string_view what, bool shrink_it) {
    if (verdict.broken.empty()) {
        return true;
    }
    fmt::print("BROKEN {}: {}\n", what, verdict.broken);
    Run small = run;
    if (shrink_it) {
        small = shrink(run);
        fmt::print("  in {} steps of {}: {}\n", small.steps.size(), run.steps.size(), try_run(small, false).broken);
    }
    fmt::print("  run: {}\n", to_string(small));
    std::fflush(stdout);
    return false;
}

bool run_kept(const Wish& wish) {
    std::ifstream in(wish.kept);
    if (!in) {
        fmt::print("{}: cannot be read\n", wish.kept);
        return false;
    }
    bool good = true;
    std::string line, note;
    while (std::getline(in, line)) {
        if (line.empty() || line.front() == '#') {
            note = line;
            continue;
        }
        const bool open = line.front() == '!'; // not mended yet
        auto run = parse_run(open ? line.substr(1) : line);
        if (!run) {
            fmt::print("{}: {}\n", wish.kept, run.error().message);
            return false;
        }
        good = (report(*run, try_run(*run, wish.loud), note, false) || open) && good;
    }
    return good;
}

bool run_one(const Wish& wish) {
    auto run = parse_run(wish.run);
    if (!run) {
        fmt::print("{}\n", run.error().message);
        return false;
    }
    return report(*run, try_run(*run, wish.loud), "as given", wish.shrink);
}

/// Each seed in two processes of its own: all that is seen of it, and when, is the same.
bool run_twice(const Wish& wish) {
    for (std::uint64_t k = 0; k < std::max<std::uint64_t>(wish.seeds, 1); ++k) {
        const Run run = make_run(wish.seed + k, wish.ops);
        const Verdict one = try_run(run, false);
        const Verdict two = try_run(run, false);
        if (one.trace != two.trace || one.broken != two.broken) {
            fmt::print("seed {} is not the same twice: {:x} {} and {:x} {}\n", wish.seed + k, one.trace, one.broken,
                       two.trace, two.broken);
            return false;
        }
    }
    fmt::print("the same twice\n");
    return true;
}

} // namespace

int main(int argc, char** argv) {
    std::optional<Wish> wish;
    try {
        wish = parse(argc, argv);
    } catch (const std::exception&) {
        wish.reset();
    }
    if (!wish) {
        fmt::print(stderr, "{}", usage);
        return 64;
    }
    if (!wish->run.empty()) {
        return run_one(*wish) ? 0 : 1;
    }
    bool good = wish->kept.empty() || run_kept(*wish);
    const auto began = std::chrono::steady_clock::now();
    const auto passed = [&began] {
        return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - began).count();
    };
    if (wish->seed == 0) {
        wish->seed = std::random_device{}() % 1'000'000'000 + 1ULL;
    }
    fmt::print("seeds from {} on, {} steps each\n", wish->seed, wish->ops);
    std::fflush(stdout);
    if (wish->twice) {
        return good && run_twice(*wish) ? 0 : 1;
    }
    std::uint64_t done = 0, steps = 0, broken = 0;
    while (wish->seeds != 0 ? done < wish->seeds : passed() < wish->seconds) {
        constexpr std::uint64_t batch = 20;
        const std::uint64_t count = wish->seeds != 0 ? std::min(batch, wish->seeds - done) : batch;
        const Batch result = try_seeds(wish->seed + done, count, wish->ops, wish->loud);
        done += result.tried;
        steps += result.tried * wish->ops;
        if (!result.verdict.broken.empty()) {
            const std::uint64_t seed = wish->seed + done - 1;
            (void)report(make_run(seed, wish->ops), result.verdict, fmt::format("seed {}", seed), wish->shrink);
            ++broken;
            good = false;
            if (!wish->go_on) {
                break;
            }
        }
        if (done % 1000 < count) {
            fmt::print("{} seeds, {} steps, {} broken, {} s\n", done, steps, broken, passed());
            std::fflush(stdout);
        }
    }
    fmt::print("{} seeds, {} steps, {} broken, {} s\n", done, steps, broken, passed());
    return good ? 0 : 1;
}
