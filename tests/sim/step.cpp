#include "step.hpp"

#include <array>
#include <sstream>

namespace vtpmd::sim {

namespace {

/// Its name, and how often it comes.
struct Sort {
    const char* name;
    std::uint32_t weight;
};
constexpr std::array<Sort, static_cast<std::size_t>(Kind::count_)> sorts{{
    {"add", 260},         {"read", 60},         {"start", 160},       {"stop", 30},         {"kill", 30},
    {"twin", 12},         {"serve", 170},       {"end", 14},          {"kill-manager", 16}, {"power", 12},
    {"create", 70},       {"remove", 16},       {"rename", 24},       {"move", 16},         {"reset", 14},
    {"group-create", 40}, {"group-remove", 24}, {"group-update", 16}, {"group-ca", 24},     {"disk-fails", 16},
    {"disk-dies", 14},    {"tpm-fails", 10},    {"cut", 14},          {"mend", 20},         {"snap", 16},
    {"hold-up", 10},      {"let-go", 16},       {"time", 30},         {"copy-store", 12},   {"old-store", 12},
    {"copy-image", 10},   {"old-image", 8},     {"new-tpm", 4},       {"fill", 2},          {"platform", 4},
    {"pull", 6},          {"grow", 4},          {"hand-over", 5},     {"recovery-add", 8},  {"recovery-remove", 6},
    {"recovery-look", 4},
}};

Kind pick(Random& random) {
    std::uint32_t all = 0;
    for (const Sort& s : sorts) {
        all += s.weight;
    }
    std::uint32_t at = random.below(all);
    for (std::size_t k = 0; k < sorts.size(); ++k) {
        if (at < sorts[k].weight) {
            return static_cast<Kind>(k);
        }
        at -= sorts[k].weight;
    }
    return Kind::time;
}

Step make_step(Random& random) {
    Step s;
    s.kind = pick(random);
    s.a = random.below(1000);
    s.b = random.below(8);
    s.c = random.below(100'000);
    switch (random.below(6)) {
    case 0:
    case 1:
        s.turns = random.below(40);
        break;
    case 2:
        s.turns = Step::until_idle;
        break;
    default:
        break;
    }
    return s;
}

/// Two or three things that management is asked at once, about one vTPM and one group.
void add_race(Random& random, std::vector<Step>& steps) {
    constexpr std::array<Kind, 10> kinds{Kind::create, Kind::create,       Kind::move,         Kind::remove,
                                         Kind::rename, Kind::group_remove, Kind::group_remove, Kind::group_ca,
                                         Kind::reset,  Kind::group_update};
    const std::uint32_t vtpm = random.below(12), group = random.below(2);
    if (random.chance(2)) {
        steps.push_back({.kind = Kind::group_create, .a = group, .c = random.below(100)});
    }
    for (std::uint32_t k = 2 + random.below(2); k > 0; --k) {
        Step s;
        s.kind = kinds.at(random.below(kinds.size()));
        const bool of_group = s.kind == Kind::group_remove || s.kind == Kind::group_ca || s.kind == Kind::group_update;
        s.a = of_group ? group : vtpm;
        s.b = group + 1;
        s.c = random.below(100'000);
        s.turns = k == 1 ? Step::until_done : random.below(random.chance(2) ? 3 : 25);
        steps.push_back(s);
    }
}

} // namespace

std::string to_string(const Step& step) {
    return fmt::format("{},{},{},{},{}", sorts.at(static_cast<std::size_t>(step.kind)).name, step.a, step.b, step.c,
                       step.turns);
}

std::string to_string(const Config& c) {
    return fmt::format("{},{},{},{},{},{},{}", c.vtpms, c.groups, c.freshness, c.created_freshness, c.recovery,
                       c.store_kib, c.chance);
}

std::string to_string(const Run& run) {
    std::string out = to_string(run.config) + ":";
    for (const Step& s : run.steps) {
        out += " " + to_string(s);
    }
    return out;
}

Result<Run> parse_run(std::string_view text) {
    std::istringstream in{std::string(text)};
    Run run;
    std::string word;
    char colon = 0;
    auto number = [](std::istream& from, auto& into) {
        from >> into;
        if (from.good() && from.peek() == ',') {
            from.get();
        }
    };
    number(in, run.config.vtpms);
    number(in, run.config.groups);
    number(in, run.config.freshness);
    number(in, run.config.created_freshness);
    number(in, run.config.recovery);
    number(in, run.config.store_kib);
    number(in, run.config.chance);
    in >> colon;
    if (!in || colon != ':') {
        return make_error(Errc::usage, "a run begins with seven numbers and a colon");
    }
    while (in >> word) {
        const auto comma = word.find(',');
        const std::string name = word.substr(0, comma);
        Step s;
        std::size_t k = 0;
        while (k < sorts.size() && name != sorts.at(k).name) {
            ++k;
        }
        std::istringstream rest(comma == std::string::npos ? "" : word.substr(comma + 1));
        number(rest, s.a);
        number(rest, s.b);
        number(rest, s.c);
        number(rest, s.turns);
        if (k == sorts.size() || rest.fail()) {
            return make_error(Errc::usage, "'{}' is no step", word);
        }
        s.kind = static_cast<Kind>(k);
        run.steps.push_back(s);
    }
    return run;
}

Run make_run(std::uint64_t seed, std::uint32_t length) {
    Random random(seed);
    Run run;
    Config& c = run.config;
    c.vtpms = 1 + random.below(4);
    c.groups = 1 + random.below(2);
    c.freshness = random.chance(8) ? 0 : random.chance(4) ? 2 : 1;
    c.created_freshness = random.chance(10) ? 0 : c.freshness;
    c.recovery = random.chance(3) ? 1 : 0;
    c.store_kib = random.chance(3) ? 256 : 512;
    c.chance = random.next() >> 1U;
    run.steps.push_back({.kind = Kind::serve});
    const bool full = c.store_kib == 256 && random.chance(6);
    while (run.steps.size() < length) {
        if (random.chance(30)) {
            add_race(random, run.steps);
        } else if (full && random.chance(8)) {
            run.steps.push_back({.kind = Kind::fill, .b = random.below(8), .c = random.below(100'000)});
        } else {
            run.steps.push_back(make_step(random));
        }
    }
    return run;
}

} // namespace vtpmd::sim
