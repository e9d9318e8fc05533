#include "top.hpp"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <optional>
#include <poll.h>
#include <sys/ioctl.h>
#include <sysexits.h>
#include <termios.h>
#include <unistd.h>

namespace vtpmctl {

namespace {

namespace json = boost::json;

constexpr double default_interval = 2;
constexpr double shortest_interval = 0.1;
constexpr double longest_interval = 3600;
constexpr std::size_t lines_above = 6;

volatile std::sig_atomic_t interrupted = 0;
void on_signal(int) { interrupted = 1; }

double interval_of(const Options& o) {
    const auto text = o.one("interval");
    if (!text) {
        return default_interval;
    }
    char* end = nullptr;
    const double seconds = std::strtod(text->c_str(), &end);
    if (text->empty() || *end != '\0' || !(seconds >= shortest_interval && seconds <= longest_interval)) {
        fail(EX_USAGE, fmt::format("--interval={}: seconds are needed, {} to {}; see vtpmctl top --help", *text,
                                   shortest_interval, longest_interval));
    }
    return seconds;
}

/// Keys come at once and are not shown; as it was when this goes.
class Keyboard {
  public:
    Keyboard() {
        if (::isatty(STDIN_FILENO) == 0 || ::tcgetattr(STDIN_FILENO, &before_) != 0) {
            return;
        }
        termios now = before_;
        now.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
        there_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &now) == 0;
    }
    Keyboard(const Keyboard&) = delete;
    Keyboard& operator=(const Keyboard&) = delete;
    ~Keyboard() {
        if (there_) {
            (void)::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
        }
    }
    /// False: q, or a signal.
    [[nodiscard]] bool wait(double seconds) const {
        using Time = std::chrono::steady_clock;
        const auto until =
            Time::now() + std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(seconds));
        while (interrupted == 0) {
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Time::now()).count();
            if (left <= 0) {
                return true;
            }
            pollfd key{.fd = there_ ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0};
            if (::poll(&key, 1, static_cast<int>(left)) <= 0) {
                continue;
            }
            char c = 0;
            if (::read(STDIN_FILENO, &c, 1) != 1 || c == 'q' || c == 'Q') {
                return false;
            }
        }
        return false;
    }

  private:
    termios before_{};
    bool there_ = false;
};

struct Sample {
    json::object said;
    std::chrono::steady_clock::time_point at;
};

Sample sample(const std::function<std::string()>& fetch) {
    const std::string body = fetch();
    return {.said = json::parse(body).as_object(), .at = std::chrono::steady_clock::now()};
}

std::uint64_t number(const json::object& o, std::string_view name) { return o.at(name).to_number<std::uint64_t>(); }

/// Since the sample before; "-" if there is none, or the manager was started anew.
std::string rate(const std::optional<Sample>& before, const Sample& now, std::string_view name) {
    if (!before || number(now.said, name) < number(before->said, name)) {
        return "-";
    }
    const double seconds = std::max(std::chrono::duration<double>(now.at - before->at).count(), 1e-3);
    return fmt::format("{:.1f}", static_cast<double>(number(now.said, name) - number(before->said, name)) / seconds);
}

std::string text_of(const std::optional<Sample>& before, const Sample& now, std::size_t rows) {
    const json::object& s = now.said;
    const json::array& busiest = s.at("busiest").as_array();
    double commands = 0;
    for (const json::value& v : busiest) {
        commands += v.at("commands_per_second").to_number<double>();
    }
    std::string out =
        fmt::format("vTPMs         {} registered, {} open\n"
                    "guests        {:.1f} commands/s; {} commands, {} commits since the manager started\n"
                    "hardware TPM  {} commands/s; waiting: {} urgent, {} routine; counter at {}, {} steps since start\n"
                    "journal       {} records waiting\n\n"
                    "{:<36}  {:<8} {:>10} {:>12} {:>10} {:>10}\n",
                    number(s, "vtpms"), number(s, "open"), commands, number(s, "guest_commands"),
                    number(s, "guest_commits"), rate(before, now, "hardware_commands"), number(s, "urgent_waiting"),
                    number(s, "routine_waiting"), number(s, "freshness_counter"), number(s, "freshness_steps"),
                    number(s, "journal_waiting"), "UUID", "STATE", "COMMANDS/S", "COMMANDS", "FAILED", "COMMITS");
    for (const json::value& v : busiest) {
        if (rows-- == 0) {
            break;
        }
        const json::object& o = v.as_object();
        out += fmt::format("{:<36}  {:<8} {:>10.1f} {:>12} {:>10} {:>10}\n", o.at("uuid").as_string().c_str(),
                           o.at("state").as_string().c_str(), o.at("commands_per_second").to_number<double>(),
                           number(o, "commands"), number(o, "failures"), number(o, "commits"));
    }
    return out;
}

std::size_t rows_of_terminal() {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row <= lines_above + 1) {
        return 20;
    }
    return size.ws_row - lines_above - 1U;
}

} // namespace

void top(const Options& o, const std::function<std::string()>& fetch) {
    const double interval = interval_of(o);
    if (o.has("json") && !o.has("once")) {
        fail(EX_USAGE, "top --json needs --once; see vtpmctl top --help");
    }
    if (o.has("json") && o.has("interval")) {
        o.refuse("--json looks once: --interval has nothing to do");
    }
    if (o.has("json")) {
        std::fputs(fetch().c_str(), stdout);
        return;
    }
    const bool screen = !o.has("once") && ::isatty(STDOUT_FILENO) != 0;
    struct sigaction action {};
    action.sa_handler = on_signal; // without SA_RESTART: what waits wakes
    (void)::sigaction(SIGINT, &action, nullptr);
    (void)::sigaction(SIGTERM, &action, nullptr);
    const Keyboard keyboard;
    std::optional<Sample> before;
    do {
        Sample now = sample(fetch);
        if (o.has("once") && !before) { // what the hardware does in a second takes two looks
            before = std::move(now);
            continue;
        }
        const std::string text = text_of(before, now, screen ? rows_of_terminal() : SIZE_MAX);
        std::fputs(screen ? "\x1b[H\x1b[J" : "", stdout);
        std::fputs(text.c_str(), stdout);
        if (std::fputs(screen || o.has("once") ? "" : "\n", stdout) < 0 || std::fflush(stdout) != 0 || o.has("once")) {
            return;
        }
        before = std::move(now);
    } while (keyboard.wait(interval));
}

} // namespace vtpmctl
