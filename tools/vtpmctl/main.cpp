// vtpmctl: what the manager's API does (src/api), for people: tables, questions before destruction, exit codes of sysexits(3).
// One request a connection; it needs nothing of the daemon's library.
#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fmt/format.h>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>
#include <vector>

namespace {

namespace json = boost::json;

constexpr std::string_view help_text = R"(vtpmctl )" VTPMD_VERSION R"(: manages the virtual TPMs of this host's vtpmd

  vtpmctl [OPTION...] COMMAND

  list                     all vTPMs
  show UUID                one vTPM
  create [UUID]            register a new vTPM; a UUID is made up if none is given
  start UUID               keep an instance running for it
  stop UUID                end that instance in good order
  delete UUID              delete it for good; no copy of it will be accepted again
  status                   the manager, its store and its hardware TPM
  seal                     what the store is sealed to, and the PCRs as they are
  freshness                rollback protection and the wear of the TPM's counter
  metrics                  figures in Prometheus' text format

Options:
  --socket=PATH            the manager's API (default /run/vtpmd/api.sock)
  --tpm-version=VERSION    with create: 1.2 or 2.0 (default 2.0)
  --json                   print what the manager answers, for programs
  --yes                    do not ask before deleting
  --help                   this text
  --version                the program's version

Exit status: 0 done; 64 a command line that makes no sense; 66 no such vTPM; 69 the manager is not there; 73 it exists
already; 75 it is in use; 77 you may not; 65, 70, 74 what is stored or the manager failed: the message says what to do.
)";

struct Failure {
    int status;
    std::string message;
};

[[noreturn]] void fail(int status, std::string message) { throw Failure{status, std::move(message)}; }

struct Options {
    std::string socket = "/run/vtpmd/api.sock";
    std::string tpm_version = "2.0";
    bool json = false;
    bool yes = false;
    std::vector<std::string> words;
};

/// The value of --name=VALUE or --name VALUE, if `at` is that option; moves on over a separate value.
std::optional<std::string> value_of(std::string_view name, const std::vector<std::string>& args, std::size_t& at) {
    const std::string& word = args[at];
    if (word.starts_with(fmt::format("{}=", name))) {
        return word.substr(name.size() + 1);
    }
    if (word != name) {
        return std::nullopt;
    }
    if (at + 1 == args.size()) {
        fail(EX_USAGE, fmt::format("{} needs a value; see vtpmctl --help", name));
    }
    return args[++at];
}

Options parse(const std::vector<std::string>& args) {
    Options o;
    for (std::size_t i = 0; i < args.size(); ++i) {
        if (auto path = value_of("--socket", args, i)) {
            o.socket = path->starts_with("unix:") ? path->substr(5) : *path;
        } else if (auto version = value_of("--tpm-version", args, i)) {
            o.tpm_version = *version;
        } else if (args[i] == "--json") {
            o.json = true;
        } else if (args[i] == "--yes" || args[i] == "-y") {
            o.yes = true;
        } else if (args[i].starts_with("-")) {
            fail(EX_USAGE, fmt::format("there is no option {}; see vtpmctl --help", args[i]));
        } else {
            o.words.push_back(args[i]);
        }
    }
    return o;
}

class Connection {
  public:
    explicit Connection(const std::string& path)
        : path_(path)
        , fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (path.empty() || path.size() >= sizeof address.sun_path) {
            fail(EX_USAGE,
                 fmt::format("--socket={}: a path of 1 to {} bytes is needed", path, sizeof address.sun_path - 1));
        }
        std::copy(path.begin(), path.end(), address.sun_path);
        timeval patience{.tv_sec = 120, .tv_usec = 0};
        (void)::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (fd_ < 0 || ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
            refuse(errno);
        }
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() { ::close(fd_); }

    std::string exchange(std::string_view request) {
        while (!request.empty()) {
            const ssize_t n = ::send(fd_, request.data(), request.size(), MSG_NOSIGNAL);
            if (n < 0) {
                break; // there may be an answer all the same
            }
            request.remove_prefix(static_cast<std::size_t>(n));
        }
        std::string answer;
        std::array<char, 65536> chunk{};
        for (;;) {
            const ssize_t n = ::recv(fd_, chunk.data(), chunk.size(), 0);
            if (n == 0) {
                return answer;
            }
            if (n < 0) {
                fail(EX_UNAVAILABLE, fmt::format("{}: no answer from the manager ({}); see its log: journalctl -u "
                                                 "vtpmd-manager",
                                                 path_, std::strerror(errno)));
            }
            answer.append(chunk.data(), static_cast<std::size_t>(n));
        }
    }

  private:
    [[noreturn]] void refuse(int error) const {
        if (error == EACCES || error == EPERM) {
            fail(EX_NOPERM, fmt::format("{}: you may not manage this host; ask as root or as a member of the manager's "
                                        "--api-group",
                                        path_));
        }
        fail(EX_UNAVAILABLE,
             fmt::format("{}: {}; start the manager (systemctl start vtpmd-manager), or name its socket with --socket",
                         path_, std::strerror(error)));
    }
    std::string path_;
    int fd_;
};

struct Answer {
    unsigned status = 0;
    std::string body;
};

int exit_of(unsigned status, std::string_view code) {
    if (code == "exists") {
        return EX_CANTCREAT;
    }
    switch (status) {
    case 400:
    case 405:
    case 413:
        return EX_USAGE;
    case 403:
        return EX_NOPERM;
    case 404:
        return EX_NOINPUT;
    case 409:
    case 504:
        return EX_TEMPFAIL;
    case 410:
        return EX_DATAERR;
    case 501:
    case 502:
    case 503:
        return EX_UNAVAILABLE;
    case 507:
        return EX_IOERR;
    default:
        return EX_SOFTWARE;
    }
}

Answer ask(const Options& o, std::string_view method, std::string_view target, const std::string& body = "") {
    Connection connection(o.socket);
    const std::string text = connection.exchange(
        fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                    "Content-Length: {}\r\n\r\n{}",
                    method, target, body.size(), body));
    const std::size_t end = text.find("\r\n\r\n");
    Answer a;
    if (!text.starts_with("HTTP/1.1 ") || text.size() < 12 || end == std::string::npos) {
        fail(EX_PROTOCOL, fmt::format("{}: what answers there is not vtpmd; check --socket", o.socket));
    }
    a.status = static_cast<unsigned>(std::strtoul(text.substr(9, 3).c_str(), nullptr, 10));
    a.body = text.substr(end + 4);
    if (a.status < 300) {
        return a;
    }
    boost::system::error_code ec;
    json::value v = json::parse(a.body, ec);
    if (ec || !v.is_object() || !v.get_object().contains("message")) {
        fail(exit_of(a.status, ""), fmt::format("the manager answered {}; see its log", a.status));
    }
    const json::object& e = v.get_object();
    auto get = [&e](const char* name) { return std::string(e.at(name).as_string().c_str()); };
    fail(exit_of(a.status, get("code")), fmt::format("{}\n  what to do: {}", get("message"), get("action")));
}

std::string time_text(const json::value& seconds) {
    const auto t = static_cast<std::time_t>(seconds.to_number<std::int64_t>());
    std::tm tm{};
    ::gmtime_r(&t, &tm);
    std::array<char, 32> out{};
    (void)std::strftime(out.data(), out.size(), "%Y-%m-%d %H:%M", &tm);
    return out.data();
}

std::string text_of(const json::value& v) {
    return v.is_string() ? std::string(v.get_string().c_str()) : json::serialize(v);
}

void print_vtpms(const json::array& all) {
    std::printf("%-36s  %-4s %-9s %8s  %s\n", "UUID", "TPM", "STATE", "SAVES", "CREATED (UTC)");
    for (const json::value& entry : all) {
        const json::object& v = entry.as_object();
        std::printf("%-36s  %-4s %-9s %8s  %s\n", text_of(v.at("uuid")).c_str(), text_of(v.at("tpm_version")).c_str(),
                    text_of(v.at("state")).c_str(), text_of(v.at("saves")).c_str(), time_text(v.at("created")).c_str());
    }
}

void print_fields(const json::object& o) {
    for (const auto& member : o) {
        const std::string name(member.key());
        if (name == "pcrs") {
            for (const json::value& p : member.value().as_array()) {
                std::printf("  %s:%-2s %s\n", text_of(p.at("bank")).c_str(), text_of(p.at("index")).c_str(),
                            text_of(p.at("value")).c_str());
            }
        } else {
            std::printf("%-18s %s\n", name.c_str(),
                        name == "created" ? time_text(member.value()).c_str() : text_of(member.value()).c_str());
        }
    }
}

void print(const Options& o, const Answer& a) {
    if (o.json) {
        std::fputs(a.body.c_str(), stdout);
        return;
    }
    const json::value v = json::parse(a.body);
    if (const auto* all = v.as_object().if_contains("vtpms"); all != nullptr && all->is_array()) {
        print_vtpms(all->get_array());
    } else {
        print_fields(v.get_object());
    }
}

void confirm_delete(const Options& o, const std::string& uuid) {
    if (o.yes) {
        return;
    }
    if (::isatty(STDIN_FILENO) == 0) {
        fail(EX_USAGE,
             fmt::format("deleting vTPM {} cannot be undone, and there is no terminal to ask at; give --yes if "
                         "it is meant",
                         uuid));
    }
    std::fprintf(stderr, "Delete vTPM %s for good? Its guest's keys are lost. Type yes: ", uuid.c_str());
    std::string line;
    std::getline(std::cin, line);
    if (line != "yes") {
        fail(EX_USAGE, "nothing was deleted");
    }
}

std::string uuid_word(const Options& o) {
    if (o.words.size() != 2) {
        fail(EX_USAGE, fmt::format("{} needs one UUID; vtpmctl list shows them", o.words[0]));
    }
    if (o.words[1].find_first_not_of("0123456789abcdefABCDEF-") != std::string::npos) {
        fail(EX_USAGE, fmt::format("'{}' is not a UUID; vtpmctl list shows them", o.words[1]));
    }
    return o.words[1];
}

void create(const Options& o) {
    if (o.words.size() > 2) {
        fail(EX_USAGE, "create takes one UUID at most; see vtpmctl --help");
    }
    json::object body{{"tpm_version", o.tpm_version}};
    if (o.words.size() == 2) {
        body["uuid"] = o.words[1];
    }
    print(o, ask(o, "POST", "/v1/vtpms", json::serialize(body)));
}

void run(const Options& o) {
    if (o.words.empty()) {
        fail(EX_USAGE, "say what to do: list, show, create, start, stop, delete, status; see vtpmctl --help");
    }
    const std::string& command = o.words[0];
    for (auto [name, path] : {std::pair{"list", "/v1/vtpms"},
                              {"status", "/v1/host"},
                              {"seal", "/v1/seal"},
                              {"freshness", "/v1/freshness"},
                              {"metrics", "/metrics"}}) {
        if (command == name) {
            if (o.words.size() != 1) {
                fail(EX_USAGE, fmt::format("{} takes no argument; see vtpmctl --help", command));
            }
            const Answer a = ask(o, "GET", path);
            if (command == "metrics") {
                std::fputs(a.body.c_str(), stdout);
            } else {
                print(o, a);
            }
            return;
        }
    }
    if (command == "create") {
        create(o);
    } else if (command == "show") {
        print(o, ask(o, "GET", "/v1/vtpms/" + uuid_word(o)));
    } else if (command == "start" || command == "stop") {
        print(o, ask(o, "POST", "/v1/vtpms/" + uuid_word(o) + "/" + command));
    } else if (command == "delete") {
        const std::string uuid = uuid_word(o);
        confirm_delete(o, uuid);
        print(o, ask(o, "DELETE", "/v1/vtpms/" + uuid));
    } else {
        fail(EX_USAGE, fmt::format("there is no command '{}'; see vtpmctl --help", command));
    }
}

} // namespace

int main(int argc, char** argv) {
    try {
        const std::vector<std::string> args(argv + 1, argv + argc);
        if (std::ranges::count(args, "--help") != 0) {
            std::fputs(help_text.data(), stdout);
            return EX_OK;
        }
        if (std::ranges::count(args, "--version") != 0) {
            std::puts("vtpmctl " VTPMD_VERSION);
            return EX_OK;
        }
        run(parse(args));
        return EX_OK;
    } catch (const Failure& f) {
        std::fprintf(stderr, "vtpmctl: %s\n", f.message.c_str());
        return f.status;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "vtpmctl: %s; what answers at the socket may be of another version\n", e.what());
        return EX_SOFTWARE;
    }
}
