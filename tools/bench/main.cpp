// vtpmd-bench: vtpmd against swtpm and against libtpms itself, on this machine, in one run.
#include "hardware.hpp"
#include "management.hpp"
#include "measure.hpp"
#include "report.hpp"
#include "ring.hpp"

#include "tpm/commands.hpp"

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <fstream>
#include <set>
#include <stdexcept>

namespace fs = std::filesystem;
namespace po = boost::program_options;
using namespace bench;

namespace {

struct Options {
    Programs programs;
    fs::path dir;
    fs::path json;
    bool quick = false;
    unsigned busy = 0;
    std::set<std::string> only; ///< empty: everything
    [[nodiscard]] bool wants(const std::string& part) const { return only.empty() || only.contains(part); }
};

/// Processes that take the processors as long as this lives.
class BusyProcessors {
  public:
    explicit BusyProcessors(unsigned count) {
        for (unsigned n = 0; n < count; ++n) {
            processes_.emplace_back(std::vector<std::string>{"sh", "-c", "while :; do :; done"}, "/dev/null");
        }
    }

  private:
    std::vector<Process> processes_;
};

/// A new directory below `parent`, short enough for sockets, removed at the end.
class ScratchDir {
  public:
    explicit ScratchDir(const fs::path& parent) {
        std::string name = (parent / "vtpmd-bench.XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) {
            throw std::runtime_error(fmt::format("cannot make a directory in {}", parent.string()));
        }
        path_ = name;
    }
    ScratchDir(const ScratchDir&) = delete;
    ScratchDir& operator=(const ScratchDir&) = delete;
    ~ScratchDir() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    [[nodiscard]] fs::path make(const char* name) const {
        fs::create_directory(path_ / name);
        return path_ / name;
    }
    [[nodiscard]] const fs::path& path() const { return path_; }

  private:
    fs::path path_;
};

std::optional<Options> parse(int argc, char** argv) {
    Options o;
    std::vector<std::string> only;
    po::options_description d(
        "vtpmd-bench: compares vtpmd with swtpm on this machine (as root, for /proc/PID/smaps_rollup)");
    auto add = d.add_options();
    add("help", "this text");
    add("vtpmd", po::value(&o.programs.vtpmd)->default_value("build/src/vtpmd"), "the program to measure");
    add("swtpm", po::value(&o.programs.swtpm)->default_value("swtpm"), "what to compare it with");
    add("dir", po::value<std::string>()->default_value("/var/tmp"), "where state is kept: a disk, not a tmpfs");
    add("json", po::value<std::string>(), "also write the results here");
    add("quick", "a smoke test of some seconds: its numbers mean little");
    add("busy", po::value(&o.busy)->default_value(0), "so many processes beside that do nothing but compute");
    add("only", po::value(&only), "trips, rings, nv, start, memory, qemu, hardware or manage (repeatable)");
    po::variables_map vm;
    po::store(po::parse_command_line(argc, argv, d), vm);
    po::notify(vm);
    if (vm.count("help") != 0) {
        std::fputs(fmt::format("{}", (std::ostringstream() << d).str()).c_str(), stdout);
        return std::nullopt;
    }
    o.dir = vm["dir"].as<std::string>();
    o.json = vm.count("json") != 0 ? vm["json"].as<std::string>() : std::string();
    o.quick = vm.count("quick") != 0;
    o.only.insert(only.begin(), only.end());
    return o;
}

constexpr double mebi = 1 << 20;

void say(std::string_view what) { fmt::print(stderr, "vtpmd-bench: {}\n", what); }

/// Commits through the manager's store with a hardware TPM that takes 20 ms a command.
void hardware(Report& report, const Extent& extent, const fs::path& dir, const std::string& swtpm) {
    using Mode = vtpmd::manager::FreshnessPolicy::Mode;
    say("commits with a slow hardware TPM");
    HardwareBench strict(swtpm, dir / "strict", {.mode = Mode::strict, .window = {}});
    HardwareBench window(swtpm, dir / "window", {});
    (void)window.commits(1, extent.hardware_time / 2); // the first step of a new store is not the steady state
    const double alone = strict.commits(1, extent.hardware_time).per_second; // each commit has its own counter step
    for (std::size_t vtpms : {std::size_t{1}, std::size_t{64}, std::size_t{512}}) {
        const CommitCost w = window.commits(vtpms, extent.hardware_time);
        const CommitCost s = strict.commits(vtpms, extent.hardware_time);
        const std::string who = fmt::format("{} vTPM{} commit", vtpms, vtpms == 1 ? "" : "s");
        report.add({.name = who + ", window: TPM commands a commit", .ours = w.commands_per_commit, .limit = 0});
        report.add({.name = who + ", strict: counter steps a batch", .ours = s.steps_per_batch, .limit = 1});
        report.add({.name = who + ", strict: TPM commands a commit", .ours = s.commands_per_commit});
        constexpr double wanted = 50.0;
        const auto at_least = vtpms >= 64 ? std::optional(wanted) : std::nullopt;
        report.add({.name = who + ", window (beside: a counter step each)",
                    .unit = "1/s",
                    .ours = w.per_second,
                    .theirs = alone,
                    .at_least = at_least});
        report.add({.name = who + ", strict (beside: a counter step each)",
                    .unit = "1/s",
                    .ours = s.per_second,
                    .theirs = alone,
                    .at_least = at_least});
    }
    const RandomLatency idle = window.random(false, extent.hardware_time);
    const RandomLatency busy = window.random(true, extent.hardware_time);
    report.add({.name = "hardware GetRandom while seals run, p50 (beside: idle)",
                .unit = "us",
                .ours = busy.p50_us,
                .theirs = idle.p50_us});
    report.add({.name = "hardware GetRandom while seals run, p99 (beside: idle)",
                .unit = "us",
                .ours = busy.p99_us,
                .theirs = idle.p99_us});
}

/// A full host, managed.
void management(Report& report, const Extent& extent, const fs::path& dir, const Programs& programs) {
    say(fmt::format("management of {} vTPMs in {} groups", extent.vtpms, extent.groups));
    const ManagementFigures f = manage(programs, dir, extent);
    constexpr double wanted_ms = 50;
    const auto times = [&](const std::string& what, const Latency& l, std::optional<double> limit) {
        report.add({.name = what + ", p50", .unit = "ms", .ours = l.p50_us / 1000, .limit = limit});
        report.add({.name = what + ", p99", .unit = "ms", .ours = l.p99_us / 1000, .limit = limit});
    };
    const std::string of = fmt::format(" of {} vTPMs", extent.vtpms);
    times("list" + of, f.list, wanted_ms);
    times("show of one" + of, f.show, wanted_ms);
    times("show, while another lists all the time", f.show_while_listed, wanted_ms);
    times("create one more beside them", f.create, wanted_ms);
    times("list of the groups", f.list_groups, wanted_ms);
    times("/metrics", f.metrics, wanted_ms);
    times("create a group (an RSA key made by the TPM)", f.create_group, std::nullopt);
    report.add({.name = "bytes of the list", .unit = "MiB", .ours = f.list_bytes / mebi});
    report.add({.name = fmt::format("create by {} clients at once", management_clients),
                .unit = "1/s",
                .ours = f.fill_per_second});
    report.add({.name = "PSS of the manager" + of, .unit = "KiB", .ours = f.pss_kib});
    report.add({.name = "PSS of the manager without vTPMs", .unit = "KiB", .ours = f.empty_pss_kib});
    report.add({.name = "its image", .unit = "MiB", .ours = f.image_bytes / mebi, .limit = 16});
    report.add({.name = "of it, a checkpoint", .unit = "MiB", .ours = f.record_bytes / mebi, .limit = 7});
    report.add({.name = "its start, to the first answer, median", .unit = "ms", .ours = f.start_us / 1000});
    report.add({.name = "the same before there were vTPMs", .unit = "ms", .ours = f.groups_start_us / 1000});
    report.add({.name = "the same before there were groups", .unit = "ms", .ours = f.empty_start_us / 1000});
    report.note(
        "management: a manager process with its store on this disk, over a TPM 2.0 (swtpm), by its socket; each "
        "vTPM has saved once. A start opens every group: its key is unsealed by the TPM.");
}

struct Bench {
    Fleet& ours;
    Fleet& theirs;
    Extent extent;
    Report& report;

    void trips() const {
        const vtpmd::Bytes random = vtpmd::tpm::get_random_command(vtpmd::TpmVersion::tpm20, 16);
        const vtpmd::Bytes extend = extend_16();
        for (const auto& [name, command] : {std::pair{"GetRandom", &random}, std::pair{"PCR_Extend", &extend}}) {
            say(fmt::format("round trips of {}", name));
            const auto t = round_trips({&ours, &theirs}, *command, extent);
            const Latency direct = direct_calls(*command, extent);
            const Latency engine = engine_calls(*command, extent);
            report.add({.name = fmt::format("{} over the Unix socket, p50", name),
                        .unit = "us",
                        .ours = t[0].p50_us,
                        .theirs = t[1].p50_us,
                        .at_most = 0.8});
            report.add({.name = fmt::format("{} over the Unix socket, p99", name),
                        .unit = "us",
                        .ours = t[0].p99_us,
                        .theirs = t[1].p99_us});
            report.add({.name = fmt::format("{} over the Unix socket, CPU of the TPM's side, each", name),
                        .unit = "us",
                        .ours = t[0].cpu_us,
                        .theirs = t[1].cpu_us,
                        .at_most = 1.1});
            const auto p = round_trips({&ours, &theirs}, *command, extent, std::chrono::milliseconds(1));
            report.add({.name = fmt::format("{}, the client sleeps 1 ms between, p50", name),
                        .unit = "us",
                        .ours = p[0].p50_us,
                        .theirs = p[1].p50_us,
                        .at_most = 1.1});
            report.add({.name = fmt::format("{}, the client sleeps 1 ms between, CPU, each", name),
                        .unit = "us",
                        .ours = p[0].cpu_us,
                        .theirs = p[1].cpu_us});
            report.add(
                {.name = fmt::format("{}, vtpmd's engine alone, p50", name), .unit = "us", .ours = engine.p50_us});
            report.add(
                {.name = fmt::format("{}, libtpms called directly, p50", name), .unit = "us", .ours = direct.p50_us});
        }
    }

    void rings() const {
        say("round trips of simulated rings");
        const vtpmd::Bytes random = vtpmd::tpm::get_random_command(vtpmd::TpmVersion::tpm20, 16);
        const RingTrips r = ring_round_trips(random, extent);
        const Latency theirs_now = round_trips({&theirs}, random, extent)[0];
        const auto row = [&](const char* how, const Latency& l, std::optional<double> wanted) {
            report.add({.name = fmt::format("GetRandom over a ring, {}, p50 (beside: swtpm's socket)", how),
                        .unit = "us",
                        .ours = l.p50_us,
                        .theirs = theirs_now.p50_us,
                        .at_most = wanted});
            report.add({.name = fmt::format("GetRandom over a ring, {}, p99 (beside: swtpm's socket)", how),
                        .unit = "us",
                        .ours = l.p99_us,
                        .theirs = theirs_now.p99_us});
        };
        row("both ends look for 50 us before they sleep", r.polled, 0.35);
        row("the guest sleeps", r.slept, std::nullopt);
        row("both sleep", r.no_spin, std::nullopt);
        for (std::size_t n : {std::size_t{1}, std::size_t{16}, std::size_t{64}, std::size_t{256}, std::size_t{1024}}) {
            report.add({.name = fmt::format("commands served on {} ring{} by one loop", n, n == 1 ? "" : "s"),
                        .unit = "1/s",
                        .ours = rings_per_second(n, random, extent.nv_time)});
        }
        report.note(
            "rings: simulated Xen, guest and back end on two threads, libtpms behind the ring, no grant or event "
            "channel hypercalls.");
    }

    void nv(const fs::path& dir) const {
        say("durable NV writes");
        report.add({.name = "registers read before a change, so that it can be taken back, p50",
                    .unit = "us",
                    .ours = registers_taken(extent).p50_us});
        report.add({.name = "its file looked for at its path, at each write and sync, p50",
                    .unit = "us",
                    .ours = watch_cost(dir, extent).p50_us});
        const Latency disk = disk_sync(dir, extent);
        report.add({.name = "4 KiB write and fdatasync on this disk, p50", .unit = "us", .ours = disk.p50_us});
        for (std::size_t count : {std::size_t{1}, extent.many}) {
            for (std::size_t n = 0; n < count; ++n) {
                run(ours, n);
                run(theirs, n);
            }
            const auto rate = nv_rates({{&ours, ClientSync::none},
                                        {&theirs, ClientSync::file},
                                        {&theirs, ClientSync::file_and_directory},
                                        {&theirs, ClientSync::none}},
                                       count, dir, extent);
            const std::string who = fmt::format("NV writes of {} vTPM{}", count, count == 1 ? "" : "s");
            const auto wanted = count == 1 ? std::optional<double>() : 10.0;
            const auto row = [&](const char* how, std::size_t k, std::optional<double> at_least) {
                report.add({.name = who + how,
                            .unit = "1/s",
                            .ours = rate[0].per_second,
                            .theirs = rate[k].per_second,
                            .at_least = at_least});
            };
            row(", swtpm + fsync", 1, wanted);
            row(", swtpm + fsync, also of the directory", 2, std::nullopt);
            row(", swtpm as it comes (not durable)", 3, std::nullopt);
            report.add({.name = who + ": CPU of the TPM's side, each",
                        .unit = "us",
                        .ours = rate[0].cpu_us,
                        .theirs = rate[3].cpu_us});
            report.add({.name = who + ": flushes of the disk, each (beside: swtpm + fsync)",
                        .ours = rate[0].flushes,
                        .theirs = rate[1].flushes});
        }
    }

    void start() const {
        say("start to first answer");
        const auto t = start_times({&ours, &theirs}, extent);
        report.add({.name = "start to first answer, existing state, median",
                    .unit = "us",
                    .ours = t[0].p50_us,
                    .theirs = t[1].p50_us,
                    .at_most = 0.5});
    }

    void idle() const {
        say("memory");
        for (std::size_t n = 0; n < extent.idle; ++n) {
            run(ours, n);
            run(theirs, n);
        }
        const Memory a = memory(ours, extent.idle);
        const Memory b = memory(theirs, extent.idle);
        report.add({.name = fmt::format("PSS of an idle vTPM, {} running", extent.idle),
                    .unit = "KiB",
                    .ours = a.vtpm_kib,
                    .theirs = b.vtpm_kib,
                    .at_most = 0.6});
        report.add({.name = fmt::format("PSS of the manager, {} vTPMs running", extent.idle),
                    .unit = "KiB",
                    .ours = a.shared_kib});
        report.add({.name = "CPU of all of them when idle", .unit = "CPU", .ours = a.idle_cpu, .theirs = b.idle_cpu});
    }

    /// Makes sure that vTPM n answers.
    static void run(Fleet& fleet, std::size_t n) {
        if (started_.insert({&fleet, n}).second) {
            fleet.start(n);
        }
        fleet.connect(n)->must(vtpmd::tpm::get_random_command(vtpmd::TpmVersion::tpm20, 16));
    }

  private:
    static inline std::set<std::pair<const Fleet*, std::size_t>> started_;
};

/// As QEMU's guests reach them.
void device_models(const Options& o, const ScratchDir& dir, const Extent& extent, Report& report) {
    say("QEMU's channel");
    const auto ours = make_ours(o.programs, {dir.make("vq"), Reach::device_model});
    const auto theirs = make_swtpm(o.programs, {dir.make("sq"), Reach::device_model});
    ours->start(0);
    theirs->start(0);
    const vtpmd::Bytes random = vtpmd::tpm::get_random_command(vtpmd::TpmVersion::tpm20, 16);
    const vtpmd::Bytes extend = extend_16();
    for (const auto& [name, command] : {std::pair{"GetRandom", &random}, std::pair{"PCR_Extend", &extend}}) {
        const auto t = round_trips({ours.get(), theirs.get()}, *command, extent);
        report.add({.name = fmt::format("{} over QEMU's channel, p50", name),
                    .unit = "us",
                    .ours = t[0].p50_us,
                    .theirs = t[1].p50_us,
                    .at_most = 0.8});
        report.add({.name = fmt::format("{} over QEMU's channel, p99", name),
                    .unit = "us",
                    .ours = t[0].p99_us,
                    .theirs = t[1].p99_us});
    }
    const auto t = start_times({ours.get(), theirs.get()}, extent);
    report.add({.name = "start to a QEMU guest's first answer, existing state, median",
                .unit = "us",
                .ours = t[0].p50_us,
                .theirs = t[1].p50_us,
                .at_most = 0.5});

    say("live migration");
    const fs::path shared = dir.make("vt");
    const auto here = make_ours(o.programs, {dir.make("vh"), Reach::old_host, shared});
    const auto there = make_ours(o.programs, {dir.make("vn"), Reach::new_host, shared});
    const auto their_here = make_swtpm(o.programs, {dir.make("sh"), Reach::old_host});
    const auto their_there = make_swtpm(o.programs, {dir.make("sn"), Reach::new_host});
    const auto m = migration_times({{here.get(), there.get()}, {their_here.get(), their_there.get()}}, extent);
    report.add({.name = "the vTPM's part of a live migration, median",
                .unit = "us",
                .ours = m[0].p50_us,
                .theirs = m[1].p50_us});
    report.note("live migration: state out, state in, first answer. vtpmd's is sealed and synced on the new host, and "
                "the old one "
                "has let go of it; swtpm's is not.");
}

/// Processes of ours beside processes of swtpm's.
void compare_fleets(const Options& o, const ScratchDir& dir, const Extent& extent, Report& report) {
    const auto ours = make_ours(o.programs, {dir.make("v")});
    const auto theirs = make_swtpm(o.programs, {dir.make("s")});
    const Bench bench{*ours, *theirs, extent, report};
    Bench::run(*ours, 0);
    Bench::run(*theirs, 0);
    if (o.wants("trips")) {
        bench.trips();
    }
    if (o.wants("rings")) {
        bench.rings();
    }
    if (o.wants("start")) {
        bench.start();
    }
    if (o.wants("memory")) {
        bench.idle();
    }
    if (o.wants("nv")) {
        bench.nv(dir.path());
    }
    report.note(
        "vtpmd's NV writes are durable (vTPM and manager) before the answer; swtpm's client syncs as the line says.");
    report.note("ratio: vtpmd / swtpm. Fleets take turns in short blocks; the client is the same code.");
}

void run(const Options& o) {
    const ScratchDir dir(o.dir);
    Report report;
    report.describe_machine(dir.path(), first_line_of(o.programs.swtpm + " --version"));
    const Extent extent = o.quick ? Extent::quick() : Extent();
    const BusyProcessors beside(o.busy);
    static constexpr std::array fleets{"trips", "rings", "start", "memory", "nv"};
    if (std::any_of(fleets.begin(), fleets.end(), [&o](const char* part) { return o.wants(part); })) {
        compare_fleets(o, dir, extent, report);
    }
    if (o.wants("qemu")) {
        device_models(o, dir, extent, report);
    }
    if (o.wants("hardware")) {
        hardware(report, extent, dir.make("h"), o.programs.swtpm);
        report.note("hardware: the manager's store on this disk, a TPM 2.0 (swtpm) that takes 20 ms for any command; a "
                    "counter step is two.");
        report.note("strict: who was told has a sixteenth of the step to be in the next batch, so nearly all vTPMs "
                    "share a step.");
    }
    if (o.wants("manage")) {
        management(report, extent, dir.make("m"), o.programs);
    }
    if (o.busy != 0) {
        report.note(fmt::format("{} busy processes beside.", o.busy));
    }
    if (o.quick) {
        report.note("--quick: a smoke test, not a measurement.");
    }
    fmt::print("{}", report.table());
    if (!o.json.empty()) {
        std::ofstream out(o.json);
        out << report.json() << '\n';
        if (!out.flush()) {
            throw std::runtime_error(fmt::format("cannot write {}", o.json.string()));
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    try {
        if (const auto options = parse(argc, argv)) {
            run(*options);
        }
        return EXIT_SUCCESS;
    } catch (const std::exception& e) {
        say(e.what());
        return EXIT_FAILURE;
    }
}
