// vtpmctl: what the manager's API does (src/api), for people: tables, questions before destruction, exit codes of sysexits(3).
// One request a connection. What needs no manager (offline.hpp) uses what is pure of the daemon's library.
#include "backup.hpp"
#include "offline.hpp"
#include "options.hpp"
#include "top.hpp"
#include "util/text.hpp"
#include "util/uuid.hpp"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fmt/format.h>
#include <functional>
#include <iostream>
#include <optional>
#include <poll.h>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>
#include <vector>

using namespace vtpmctl;

namespace {

namespace json = boost::json;

constexpr int patience_seconds = 120;

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
        timeval patience{.tv_sec = patience_seconds, .tv_usec = 0};
        (void)::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (fd_ < 0 || ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
            refuse(errno);
        }
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() { ::close(fd_); }

    std::string exchange(std::string_view request) {
        std::string answer;
        exchange(request, [&answer](std::string_view piece) { answer += piece; });
        return answer;
    }
    /// `take` gets the answer as it comes.
    void exchange(std::string_view request, const std::function<void(std::string_view)>& take) {
        while (!request.empty()) {
            const ssize_t n = ::send(fd_, request.data(), request.size(), MSG_NOSIGNAL);
            if (n < 0) {
                break; // there may be an answer all the same
            }
            request.remove_prefix(static_cast<std::size_t>(n));
        }
        std::array<char, 65536> chunk{};
        for (;;) {
            wait_for_answer();
            const ssize_t n = ::recv(fd_, chunk.data(), chunk.size(), 0);
            if (n == 0) {
                return;
            }
            if (n < 0) {
                fail(EX_UNAVAILABLE, fmt::format("{}: no answer from the manager ({}); see its log: journalctl -u "
                                                 "vtpmd-manager",
                                                 path_, std::strerror(errno)));
            }
            take(std::string_view(chunk.data(), static_cast<std::size_t>(n)));
        }
    }

  private:
    /// What takes long (a step of the TPM's counter, the end of an instance) says on a terminal that it goes on.
    void wait_for_answer() const {
        if (::isatty(STDERR_FILENO) == 0) {
            return;
        }
        pollfd readable{.fd = fd_, .events = POLLIN, .revents = 0};
        int seconds = 0;
        while (seconds < patience_seconds && ::poll(&readable, 1, 1000) == 0) {
            std::fprintf(stderr, "\rwaiting for the manager: %d s", ++seconds);
        }
        if (seconds != 0) {
            std::fputs("\r\x1b[K", stderr);
        }
    }
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

std::string request_of(std::string_view method, std::string_view target, const std::string& body) {
    return fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                       "Content-Length: {}\r\n\r\n{}",
                       method, target, body.size(), body);
}

/// What was answered; the end of the program if that is an error.
Answer read_answer(const Options& o, const std::string& text) {
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

Answer ask(const Options& o, std::string_view method, std::string_view target, const std::string& body = "") {
    Connection connection(o.socket);
    return read_answer(o, connection.exchange(request_of(method, target, body)));
}

/// The body of an answer that may be large, piece by piece.
void fetch(const Options& o, std::string_view method, std::string_view target, const Sink& sink) {
    Connection connection(o.socket);
    std::string head;
    std::optional<std::uint64_t> length;
    std::uint64_t done = 0;
    auto deliver = [&](std::string_view piece) {
        done += piece.size();
        sink(piece, *length);
    };
    connection.exchange(request_of(method, target, ""), [&](std::string_view piece) {
        if (length) {
            deliver(piece);
            return;
        }
        head += piece;
        const std::size_t end = head.find("\r\n\r\n");
        constexpr std::string_view field = "\r\nContent-Length: ";
        const std::size_t at = head.find(field);
        if (end != std::string::npos && at < end && head.starts_with("HTTP/1.1 200 ")) {
            length = std::strtoull(head.c_str() + at + field.size(), nullptr, 10);
            deliver(std::string_view(head).substr(end + 4));
        }
    });
    if (!length) {
        (void)read_answer(o, head);
        fail(EX_PROTOCOL, fmt::format("{}: what answers there is not vtpmd; check --socket", o.socket));
    }
    if (done != *length) {
        fail(EX_UNAVAILABLE,
             fmt::format("the manager sent {} of {} bytes; nothing is kept of them: see its log, and try "
                         "again",
                         done, *length));
    }
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
    std::printf("%-36s  %-4s %-9s %8s  %-16s  %s\n", "UUID", "TPM", "STATE", "SAVES", "CREATED (UTC)", "NAME");
    for (const json::value& entry : all) {
        const json::object& v = entry.as_object();
        std::printf("%-36s  %-4s %-9s %8s  %s  %s\n", text_of(v.at("uuid")).c_str(),
                    text_of(v.at("tpm_version")).c_str(), text_of(v.at("state")).c_str(),
                    text_of(v.at("saves")).c_str(), time_text(v.at("created")).c_str(), text_of(v.at("name")).c_str());
    }
}

void print_groups(const json::array& all) {
    std::printf("%-36s  %6s %-6s %7s %8s  %s\n", "UUID", "NUMBER", "STATE", "VTPMS", "SEQUENCE", "CREATED (UTC)");
    for (const json::value& entry : all) {
        const json::object& g = entry.as_object();
        std::printf("%-36s  %6s %-6s %7s %8s  %s\n", text_of(g.at("uuid")).c_str(), text_of(g.at("number")).c_str(),
                    g.at("open").as_bool() ? "open" : "closed", text_of(g.at("vtpms")).c_str(),
                    text_of(g.at("sequence")).c_str(), time_text(g.at("created")).c_str());
    }
}

void print_pcrs(const json::array& pcrs) {
    for (const json::value& p : pcrs) {
        std::printf("  %s:%-2s %s\n", text_of(p.at("bank")).c_str(), text_of(p.at("index")).c_str(),
                    text_of(p.at("value")).c_str());
    }
}

void print_fields(const json::object& o) {
    for (const auto& member : o) {
        const std::string name(member.key());
        const json::value& v = member.value();
        if (name == "pcrs") {
            print_pcrs(v.as_array());
        } else if (name == "platforms") {
            for (const json::value& p : v.as_array()) {
                std::printf("platform           %s\n", text_of(p.at("selection")).c_str());
                print_pcrs(p.at("pcrs").as_array());
            }
        } else if (v.is_array()) {
            for (const json::value& one : v.get_array()) {
                std::printf("%-18s %s\n", name.c_str(), text_of(one).c_str());
            }
        } else if (const std::string text = name == "created" || name == "reset" ? time_text(v) : text_of(v);
                   text.find('\n') != std::string::npos) {
            std::printf("%s\n%s", name.c_str(), text.c_str());
        } else if (!text.empty()) {
            std::printf("%-18s %s\n", name.c_str(), text.c_str());
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
    } else if (const auto* groups = v.as_object().if_contains("groups")) {
        print_groups(groups->as_array());
    } else {
        print_fields(v.get_object());
    }
}

/// `question` says what is done to what ("Delete vTPM U for good?"), `consequence` what is lost.
void confirm(const Options& o, const std::string& question, const std::string& consequence) {
    if (o.yes) {
        return;
    }
    if (::isatty(STDIN_FILENO) == 0) {
        fail(EX_USAGE, fmt::format("{} {} It cannot be undone, and there is no terminal to ask at; give --yes if it is "
                                   "meant",
                                   question, consequence));
    }
    std::fprintf(stderr, "%s %s Type yes: ", question.c_str(), consequence.c_str());
    std::string line;
    std::getline(std::cin, line);
    if (line != "yes") {
        fail(EX_USAGE, "nothing was changed");
    }
}

/// The UUID that is the last of `count` words.
std::string uuid_word(const Options& o, std::size_t count, std::string_view command, std::string_view shown_by) {
    if (o.words.size() != count) {
        fail(EX_USAGE, fmt::format("{} needs one UUID; {} shows them", command, shown_by));
    }
    if (o.words.back().find_first_not_of("0123456789abcdefABCDEF-") != std::string::npos) {
        fail(EX_USAGE, fmt::format("'{}' is not a UUID; {} shows them", o.words.back(), shown_by));
    }
    return o.words.back();
}

/// As a query takes it.
std::string encoded(std::string_view text) {
    std::string out;
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
        out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return out;
}

/// The UUID of the vTPM that the second word means: a UUID always means itself, else it is the name of one.
std::string vtpm_word(const Options& o, std::size_t count = 2) {
    if (o.words.size() != count) {
        fail(EX_USAGE, fmt::format("{} needs a vTPM's UUID or name{}; vtpmctl list shows them", o.words[0],
                                   count > 2 ? ", and its new name" : ""));
    }
    const std::string& word = o.words[1];
    if (auto uuid = vtpmd::parse_uuid(word)) {
        return vtpmd::to_string(*uuid);
    }
    const json::value found = json::parse(ask(o, "GET", "/v1/vtpms?name=" + encoded(word)).body);
    const json::array& all = found.at("vtpms").as_array();
    if (word.empty() || all.empty()) {
        fail(EX_NOINPUT, fmt::format("'{}' is neither a UUID nor a vTPM's name; vtpmctl list shows them", word));
    }
    if (all.size() == 1) {
        return text_of(all[0].at("uuid"));
    }
    constexpr std::size_t told = 10;
    std::string candidates;
    for (std::size_t i = 0; i < std::min(told, all.size()); ++i) {
        candidates += "\n  " + text_of(all[i].at("uuid"));
    }
    fail(EX_USAGE, fmt::format("'{}' is the name of {} vTPMs; say which by its UUID{}:{}", word, all.size(),
                               all.size() > told ? " (the first ten)" : "", candidates));
}

/// A file, in hexadecimal.
std::string hex_of_file(const std::string& path) { return vtpmd::to_hex(vtpmd::as_bytes(read_file(path))); }

void create_group(const Options& o) {
    if (o.words.size() != 2) {
        fail(EX_USAGE, "group create takes no UUID: the approval list names it; see vtpmctl --help");
    }
    json::object body{{"approver", read_file(o.needed("approver", "the approver's public key"))},
                      {"list", hex_of_file(o.needed("list", "the first approval list, signed (vtpmctl approve)"))}};
    if (auto key = o.one("recovery-key")) {
        body["recovery_key"] = read_file(*key);
        body["recovery_signature"] =
            hex_of_file(o.needed("recovery-signature", "the approver's signature for the recovery key"));
    }
    print(o, ask(o, "POST", "/v1/groups", json::serialize(body)));
}

/// PEM as it is, for a file; or what the manager answers.
void print_ca(const Options& o, const Answer& a) {
    const json::value v = json::parse(a.body);
    std::fputs(o.json ? a.body.c_str() : v.at(o.csr ? "request" : "certificates").as_string().c_str(), stdout);
}

void group_ca(const Options& o, const std::string& path) {
    const auto file = o.one("set");
    if (!file) {
        print_ca(o, ask(o, "GET", path));
        return;
    }
    if (o.csr) {
        fail(EX_USAGE, "--csr and --set do not go together: get the request, have it signed, then set what came of it");
    }
    const json::object body{{"certificates", read_file(*file)}};
    print_ca(o, ask(o, "PUT", path, json::serialize(body)));
}

void group_command(const Options& o) {
    const std::string what = o.words.size() < 2 ? "" : o.words[1];
    const std::string name = "group " + what;
    if (what == "list" && o.words.size() == 2) {
        print(o, ask(o, "GET", "/v1/groups"));
        return;
    }
    if (what == "create") {
        create_group(o);
        return;
    }
    if (what != "show" && what != "update" && what != "recover" && what != "ca" && what != "delete") {
        fail(EX_USAGE, "group takes one of: list, show, create, update, recover, ca, delete; see vtpmctl --help");
    }
    const std::string path = "/v1/groups/" + uuid_word(o, 3, name, "vtpmctl group list");
    if (what == "show") {
        print(o, ask(o, "GET", path));
    } else if (what == "ca") {
        group_ca(o, path + "/ca");
    } else if (what == "update") {
        const json::object body{{"list", hex_of_file(o.needed("list", "the newer approval list (vtpmctl approve)"))}};
        print(o, ask(o, "POST", path + "/update", json::serialize(body)));
    } else if (what == "recover") {
        const json::object body{{"shared", hex_of_file(o.needed("shared", "the shared secret (openssl pkeyutl)"))}};
        print(o, ask(o, "POST", path + "/recover", json::serialize(body)));
    } else {
        confirm(o, "Delete group " + o.words.back() + " for good?", "Its keys are lost.");
        print(o, ask(o, "DELETE", path));
    }
}

void create(const Options& o) {
    if (o.words.size() > 2) {
        fail(EX_USAGE, "create takes one UUID at most; see vtpmctl --help");
    }
    json::object body{{"tpm_version", o.one("tpm-version").value_or("2.0")}};
    if (auto group = o.one("group")) {
        body["group"] = *group;
    }
    if (auto name = o.one("name")) {
        body["name"] = *name;
    }
    if (o.words.size() == 2) {
        body["uuid"] = o.words[1];
    }
    print(o, ask(o, "POST", "/v1/vtpms", json::serialize(body)));
}

/// A deep quote into a file, for whoever is to be shown it.
void quote(const Options& o) {
    const std::string uuid = vtpm_word(o);
    json::object body{{"nonce", o.needed("nonce", "what whoever is to be shown the quote chose, hexadecimal")}};
    const std::string out = o.needed("out", "the file to write the quote to");
    for (auto [option, field] : {std::pair{"pcrs", "pcrs"}, {"host-pcrs", "host_pcrs"}}) {
        if (auto value = o.one(option)) {
            body[field] = *value;
        }
    }
    const Answer a = ask(o, "POST", "/v1/vtpms/" + uuid + "/quote", json::serialize(body));
    const auto bytes = vtpmd::from_hex(text_of(json::parse(a.body).as_object().at("quote")));
    if (!bytes) {
        fail(EX_PROTOCOL, fmt::format("the manager's quote: {}", bytes.error().message));
    }
    write_file(out, *bytes);
    if (o.json) {
        std::fputs(a.body.c_str(), stdout);
    } else {
        std::printf("%s: the deep quote, %zu bytes; check it with: vtpmctl verify-quote %s\n", out.c_str(),
                    bytes->size(), out.c_str());
    }
}

void list(const Options& o) {
    if (o.words.size() != 1) {
        fail(EX_USAGE, "list takes no argument but --name and --group; see vtpmctl --help");
    }
    std::string target = "/v1/vtpms";
    for (const char* filter : {"name", "group"}) {
        if (auto value = o.one(filter)) {
            target +=
                fmt::format("{}{}={}", target.find('?') == std::string::npos ? "?" : "&", filter, encoded(*value));
        }
    }
    print(o, ask(o, "GET", target));
}

void edit(const Options& o) {
    json::object body;
    std::string uuid;
    if (o.words[0] == "rename") {
        uuid = vtpm_word(o, 3);
        body["name"] = o.words[2];
    } else {
        uuid = vtpm_word(o);
        body["group"] = o.needed("group", "the group that it goes to");
    }
    print(o, ask(o, "PATCH", "/v1/vtpms/" + uuid, json::serialize(body)));
}

void make_backup(const Options& o) {
    if (o.words.size() != 2) {
        fail(EX_USAGE, "backup needs the name of one file; see vtpmctl --help");
    }
    const std::uint64_t size = backup(o, o.words[1], [&o](const Sink& sink) { fetch(o, "POST", "/v1/backup", sink); });
    const json::object done{{"file", o.words[1]}, {"bytes", size}};
    print(o, Answer{.status = 200, .body = json::serialize(done) + "\n"});
}

void run(const Options& o) {
    if (o.words.empty()) {
        fail(EX_USAGE,
             "say what to do: list, show, create, rename, move, start, stop, reset, delete, quote, group, backup, top, "
             "status, approve, verify-quote; see vtpmctl --help");
    }
    const std::string& command = o.words[0];
    for (auto [name, path] : {std::pair{"status", "/v1/host"},
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
    if (command == "top") {
        if (o.words.size() != 1) {
            fail(EX_USAGE, "top takes no argument; see vtpmctl --help");
        }
        top(o, [&o] { return ask(o, "GET", "/v1/top").body; });
    } else if (command == "list") {
        list(o);
    } else if (command == "create") {
        create(o);
    } else if (command == "rename" || command == "move") {
        edit(o);
    } else if (command == "group") {
        group_command(o);
    } else if (command == "backup") {
        make_backup(o);
    } else if (command == "approve") {
        approve(o);
    } else if (command == "verify-quote") {
        verify_quote(o);
    } else if (command == "show") {
        print(o, ask(o, "GET", "/v1/vtpms/" + vtpm_word(o)));
    } else if (command == "start" || command == "stop") {
        print(o, ask(o, "POST", "/v1/vtpms/" + vtpm_word(o) + "/" + command));
    } else if (command == "quote") {
        quote(o);
    } else if (command == "delete") {
        const std::string uuid = vtpm_word(o);
        confirm(o, "Delete vTPM " + uuid + " for good?", "Its guest's keys are lost.");
        print(o, ask(o, "DELETE", "/v1/vtpms/" + uuid));
    } else if (command == "reset") {
        const std::string uuid = vtpm_word(o);
        confirm(o, "Reset vTPM " + uuid + " to factory?", "Its guest's keys are lost.");
        print(o, ask(o, "POST", "/v1/vtpms/" + uuid + "/reset"));
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
