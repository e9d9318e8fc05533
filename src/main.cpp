// vtpmd: parse, choose the mode, build the loop, run the root coroutine, map the outcome to an exit code (sysexits(3)).
#include "api/server.hpp"
#include "instance/command_line.hpp"
#include "instance/run.hpp"
#include "instance/xen_words.hpp"
#include "manager/command_line.hpp"
#include "manager/run.hpp"
#include "manager/xen_words.hpp"
#include "util/block_file_queue.hpp"
#include "util/last_words.hpp"
#include "util/log_output.hpp"
#include "util/runtime.hpp"
#include "util/sandbox.hpp"
#include "util/secret_bytes.hpp"
#include "util/service.hpp"
#include "util/standard_descriptors.hpp"
#include "util/wake.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <malloc.h>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <vector>

namespace vtpmd {
namespace {

constexpr std::string_view overview =
    "vtpmd " VTPMD_VERSION ": TPMs for the guests of a virtualisation host, rooted in the host's own TPM\n"
    "\n"
    "  vtpmd --mode=manager [OPTION...]           one per host: owns the hardware TPM, keeps every vTPM's key\n"
    "  vtpmd --mode=instance --uuid=U [OPTION...] one per vTPM: runs that guest's TPM 1.2 or 2.0\n"
    "\n"
    "  vtpmd --mode=MODE --help                   the options of a mode\n"
    "  vtpmd --version\n";

using Root = std::function<Task<Result<void>>(RuntimeDeps)>;

int fail(const Error& e) {
    std::fprintf(stderr, "vtpmd: %s\n", e.message.c_str());
    leave_last_words(e.message);
    return exit_code(e.code);
}

/// --mode=X, --mode X, or the word mode=X; taken out of the arguments.
std::string take_mode(std::vector<std::string>& arguments) {
    for (auto it = arguments.begin(); it != arguments.end(); ++it) {
        if (it->starts_with("--mode=") || it->starts_with("mode=")) {
            std::string mode = it->substr(it->find('=') + 1);
            arguments.erase(it);
            return mode;
        }
        if (*it == "--mode" && std::next(it) != arguments.end()) {
            std::string mode = *std::next(it);
            arguments.erase(it, std::next(it, 2));
            return mode;
        }
    }
    return "";
}

Result<LogLevel> parse_log_level(std::string_view text) {
    for (auto [name, level] : {std::pair{"error", LogLevel::error},
                               {"warning", LogLevel::warning},
                               {"warn", LogLevel::warning},
                               {"info", LogLevel::info},
                               {"debug", LogLevel::debug}}) {
        if (text == name) {
            return level;
        }
    }
    return make_error(Errc::usage, "--log-level={}: expected error, warning, info or debug", text);
}

/// Says how many lines of the log were dropped once they are read again. It looks ever less often while nobody reads, and
/// not at all while nothing was dropped.
Task<> catch_up_with_log(LogOutput& output, Wake& dropping, Clock& clock) {
    constexpr auto first_look = std::chrono::seconds{1};
    constexpr auto last_look = std::chrono::seconds{60};
    for (;;) {
        if (auto ended = co_await dropping.wait()) {
            co_return;
        }
        Clock::duration look = first_look;
        do {
            if (auto ended = co_await clock.sleep_for(look)) {
                co_return;
            }
            look = std::min<Clock::duration>(2 * look, last_look);
        } while (!output.catch_up());
    }
}

/// The first signal asks for a good end; the second one leaves at once.
Task<> watch_signals(asio::signal_set& signals, StopSignal& stop, const Log& log) {
    auto [ec, number] = co_await signals.async_wait(use_tuple);
    if (ec) {
        co_return;
    }
    log.info("stopping (signal {})", number);
    notify_stopping();
    stop.request();
    std::tie(ec, number) = co_await signals.async_wait(use_tuple);
    if (!ec) {
        log.error("second signal {}: leaving without waiting for what is in flight", number);
        std::_Exit(EX_TEMPFAIL);
    }
}

int run(const Root& root, const Log& log, LogOutput& output) {
    asio::io_context io(1);
    SystemClock clock(io.get_executor());
    clock.keep_timer(true);
    StopSignal stop(io.get_executor());
    asio::signal_set signals(io, SIGTERM, SIGINT);
    // A terminal that goes; under nohup(1) it is ignored. NOLINTNEXTLINE(bugprone-signal-handler)
    if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) {
        signals.add(SIGHUP);
    }
    std::optional<Result<void>> outcome;
    std::exception_ptr thrown;
    Wake dropping(io.get_executor());
    asio::cancellation_signal enough;
    output.when_dropping([&io, &dropping] { asio::post(io, [&dropping] { dropping.set(); }); });
    asio::co_spawn(io, catch_up_with_log(output, dropping, clock),
                   asio::bind_cancellation_slot(enough.slot(), [&](std::exception_ptr e) { thrown = e ? e : thrown; }));
    asio::co_spawn(io, watch_signals(signals, stop, log), [&](std::exception_ptr e) {
        if (e && !thrown) {
            thrown = e;
        }
    });
    asio::co_spawn(io, root(RuntimeDeps{io.get_executor(), clock, log, stop}),
                   [&](std::exception_ptr e, Result<void> r) {
                       thrown = e ? e : thrown;
                       outcome = std::move(r);
                       signals.cancel();
                       clock.keep_timer(false);
                       enough.emit(asio::cancellation_type::terminal);
                   });
    io.run();
    output.when_dropping({});
    if (thrown) {
        std::rethrow_exception(thrown);
    }
    if (!outcome || outcome->has_error()) {
        Error e = outcome ? outcome->error() : make_error(Errc::canceled, "ended without an outcome");
        log.error("{}", e.message);
        leave_last_words(e.message);
        return exit_code(e.code);
    }
    log.info("ended in good order");
    return EX_OK;
}

/// What both modes set up before anything secret is in memory.
void prepare_process(std::size_t secret_arena, const Log& log) {
    ::umask(0077);
    // libtpms takes 160 KiB for each change and gives them back: the heap keeps them, instead of growing and shrinking.
    constexpr int kept_heap = 1024 * 1024;
    (void)::mallopt(M_TRIM_THRESHOLD, kept_heap);
    (void)::mallopt(M_MMAP_THRESHOLD, kept_heap);
    std::signal(SIGPIPE, SIG_IGN); // NOLINT(bugprone-signal-handler): ignoring, not handling
    rlimit files{}; // the manager has a descriptor for every vTPM: as many as the administrator lets us have
    if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)::setrlimit(RLIMIT_NOFILE, &files);
    }
    if (!protect_process_secrets(secret_arena)) {
        log.warning("key material cannot be locked in memory and could be swapped out: raise RLIMIT_MEMLOCK");
    }
}

struct Mode {
    std::span<const OptionSpec> specs;
    std::string_view usage;
    std::string default_config;
    std::size_t secret_arena; ///< bytes of locked memory, a power of two
    std::function<Result<Root>(const CommandLine&)> root;
    /// The words of the Xen stub domain that this mode takes the place of.
    Result<Translation> (*translate_xen_words)(const std::vector<std::string>&);
};

/// A root that hands its options over when it is called, which is once: options own descriptors.
template <typename Options>
Root once(Options options, Task<Result<void>> (*run_mode)(Options, RuntimeDeps)) {
    auto kept = std::make_shared<Options>(std::move(options));
    return [kept, run_mode](RuntimeDeps deps) { return run_mode(std::move(*kept), std::move(deps)); };
}

Result<Root> manager_root(const CommandLine& line) {
    auto options = manager::parse_options(line);
    if (!options) {
        return options.error();
    }
    options->management.make = api::make_management;
    return once<manager::ManagerOptions>(std::move(*options), manager::run_manager);
}

Result<Root> instance_root(const CommandLine& line) {
    auto options = instance::parse_options(line);
    if (!options) {
        return options.error();
    }
    return once<instance::InstanceOptions>(std::move(*options), instance::run_instance);
}

std::optional<Mode> find_mode(std::string_view name) {
    if (name == "manager") {
        return Mode{manager::option_specs(),
                    "vtpmd --mode=manager [OPTION...]",
                    "/etc/vtpmd/manager.conf",
                    std::size_t{256} * 1024,
                    manager_root,
                    manager::translate_xen_words};
    }
    if (name == "instance") {
        return Mode{instance::option_specs(),
                    "vtpmd --mode=instance --uuid=U [OPTION...]",
                    "/etc/vtpmd/instance.conf",
                    std::size_t{64} * 1024,
                    instance_root,
                    instance::translate_xen_words};
    }
    return std::nullopt;
}

int run_mode(const Mode& mode, const std::vector<std::string>& arguments) {
    auto translated = mode.translate_xen_words(arguments);
    if (!translated) {
        return fail(translated.error());
    }
    auto line = CommandLine::parse({mode.specs, std::move(translated->arguments), mode.default_config});
    if (!line) {
        return fail(line.error());
    }
    if (line->has("help")) {
        std::printf("%s\n\n%s", std::string(mode.usage).c_str(), CommandLine::help(mode.specs).c_str());
        return EX_OK;
    }
    auto level = parse_log_level(line->get_or("log-level", "info"));
    if (!level) {
        return fail(level.error());
    }
    auto output = std::make_shared<LogOutput>(STDERR_FILENO);
    const Log log(*level, output);
    /// What was dropped is said at the end, whichever way that is.
    struct Finish {
        LogOutput& output;
        ~Finish() { output.finish(); }
    } finish{*output};
    for (const std::string& notice : translated->notices) {
        log.warning("{}", notice);
    }
    auto root = mode.root(*line);
    if (!root) {
        return fail(root.error());
    }
    prepare_process(mode.secret_arena, log);
    try {
        return run(*root, log, *output);
    } catch (const boost::system::system_error& e) {
        if (std::string_view(e.what()).find("io_uring") != std::string_view::npos) {
            const Error refused = io_uring_refused(e.code().value());
            log.error("{}", refused.message);
            return exit_code(refused.code);
        }
        log.error("{}", e.what());
        return EX_OSERR;
    }
}

int main_checked(std::vector<std::string> arguments) {
    std::string name = take_mode(arguments);
    if (name.empty()) {
        if (arguments.size() == 1 && (arguments[0] == "--version" || arguments[0] == "--help")) {
            std::printf("%s", arguments[0] == "--help" ? overview.data() : "vtpmd " VTPMD_VERSION "\n");
            return EX_OK;
        }
        return fail(make_error(Errc::usage, "say which one to run: --mode=manager or --mode=instance; see --help"));
    }
    auto mode = find_mode(name);
    if (!mode) {
        return fail(make_error(Errc::usage, "--mode={}: expected manager or instance", name));
    }
    return run_mode(*mode, arguments);
}

} // namespace
} // namespace vtpmd

int main(int argc, char** argv) {
    vtpmd::forbid_dumping(); // before all else: who reads our memory now reads it always
    if (!vtpmd::open_standard_descriptors()) {
        return EX_OSFILE;
    }
    vtpmd::own_standard_error();
    try {
        return vtpmd::main_checked(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const std::exception& e) {
        std::fprintf(stderr, "vtpmd: %s\n", e.what());
        return EX_SOFTWARE;
    }
}
