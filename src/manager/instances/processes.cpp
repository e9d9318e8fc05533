#include "manager/instances/processes.hpp"

#include "util/text.hpp"

#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <poll.h>
#include <sstream>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

constexpr int so_peerpidfd = 77;                             // <asm-generic/socket.h>, since Linux 6.5
constexpr decltype(statfs::f_type) pidfs_magic = 0x50494446; // <linux/magic.h>: inodes are never used twice (Linux 6.9)
constexpr std::size_t note_limit = 8192;

bool connection_stands(int socket) {
    pollfd p{.fd = socket, .events = POLLRDHUP, .revents = 0};
    return ::poll(&p, 1, 0) == 0;
}

std::string first_line(const std::string& path) {
    std::ifstream in(path);
    std::string line;
    std::getline(in, line);
    return line;
}

/// Field 22 of /proc/PID/stat; the name in field 2 may hold anything, and ends with the last parenthesis.
std::string start_time(pid_t pid) {
    const std::string stat = first_line(fmt::format("/proc/{}/stat", pid));
    const std::size_t name_end = stat.rfind(')');
    if (name_end == std::string::npos) {
        return "";
    }
    std::istringstream fields(stat.substr(name_end + 1));
    std::string word;
    for (int field = 3; field <= 22; ++field) {
        fields >> word;
    }
    return fields ? word : "";
}

/// What stands in a line of a note.
bool is_plain(std::string_view text) { return text.find('\n') == std::string_view::npos; }

} // namespace

bool ProcessHandle::alive() const {
    if (!pidfd) {
        return false;
    }
    pollfd p{.fd = pidfd->get(), .events = POLLIN, .revents = 0}; // readable once it has ended
    return ::poll(&p, 1, 0) == 0;
}

void ProcessHandle::signal(int number) const {
    if (pidfd) {
        (void)::syscall(SYS_pidfd_send_signal, pidfd->get(), number, nullptr, 0);
    }
}

ProcessHandle open_process(pid_t pid) {
    UniqueFd fd(pid > 0 ? static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)) : -1);
    return fd ? ProcessHandle{.pid = pid, .pidfd = std::make_shared<const UniqueFd>(std::move(fd))} : ProcessHandle{};
}

ProcessHandle peer_process(int socket) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) {
        return {};
    }
    int fd = -1;
    size = sizeof fd;
    if (::getsockopt(socket, SOL_SOCKET, so_peerpidfd, &fd, &size) == 0) {
        return {.pid = peer.pid, .pidfd = std::make_shared<const UniqueFd>(UniqueFd(fd))};
    }
    // Whoever made the connection still has it: its number has not become another's.
    ProcessHandle process = open_process(peer.pid);
    return connection_stands(socket) ? process : ProcessHandle{};
}

std::string identity_of(const ProcessHandle& process) {
    if (!process.known()) {
        return "";
    }
    struct statfs fs {};
    struct stat st {};
    const std::string boot = first_line("/proc/sys/kernel/random/boot_id");
    if (boot.empty()) {
        return "";
    }
    if (::fstatfs(process.pidfd->get(), &fs) == 0 && fs.f_type == pidfs_magic &&
        ::fstat(process.pidfd->get(), &st) == 0) {
        return fmt::format("{} inode {}", boot, st.st_ino);
    }
    const std::string started = start_time(process.pid);
    return started.empty() || !process.alive() ? "" : fmt::format("{} start {}", boot, started);
}

std::string rights_of(const ProcessHandle& process) {
    std::ifstream status(fmt::format("/proc/{}/status", process.pid));
    std::map<std::string, std::string> fields;
    for (std::string line; std::getline(status, line);) {
        if (const std::size_t colon = line.find(':'); colon != std::string::npos) {
            std::istringstream words(line.substr(colon + 1));
            words >> fields[line.substr(0, colon)];
        }
    }
    if (fields.empty() || !process.alive()) {
        return "";
    }
    const bool powerless = fields["CapEff"].find_first_not_of('0') == std::string::npos &&
                           fields["CapPrm"].find_first_not_of('0') == std::string::npos;
    return fmt::format("user {}, {}, {}, {}", fields["Uid"], powerless ? "no capabilities" : "capabilities",
                       fields["NoNewPrivs"] == "1" ? "no new privileges" : "new privileges possible",
                       fields["Seccomp"] == "2" ? "seccomp" : "no seccomp");
}

Processes::Processes(std::string run_dir, ImageHeld image_held, Clock& clock, const Log& log)
    : dir_(run_dir.empty() ? std::string() : std::move(run_dir) + "/instances")
    , image_held_(std::move(image_held))
    , clock_(clock)
    , log_(log)
    , begun_(clock.now()) {}

std::string Processes::path_of(const Uuid& uuid) const { return fmt::format("{}/{}", dir_, uuid); }

std::vector<Processes::Found> Processes::take_up() {
    std::vector<Found> out;
    std::error_code ec;
    if (dir_.empty()) {
        return out;
    }
    std::vector<std::filesystem::path> paths;
    for (std::filesystem::directory_iterator it(dir_, ec), end; !ec && it != end; it.increment(ec)) {
        paths.push_back(it->path());
    }
    for (const auto& path : paths) {
        if (path.filename() == "link.sock") {
            continue; // where they come back to (run.cpp)
        }
        auto uuid = parse_uuid(path.filename().string());
        auto entry = uuid ? read_note(path) : std::nullopt;
        if (!entry) {
            std::filesystem::remove(path, ec); // that process has ended, or a note was cut short
            continue;
        }
        out.push_back({.uuid = *uuid, .spawned = entry->spawned});
        entries_.insert_or_assign(*uuid, std::move(*entry));
    }
    return out;
}

/// nullopt: its process has ended, or it says nothing.
std::optional<Processes::Entry> Processes::read_note(const std::string& path) const {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    std::string text(note_limit, '\0');
    const ssize_t got = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
    if (got <= 0) {
        return std::nullopt;
    }
    text.resize(static_cast<std::size_t>(got));
    Entry entry;
    std::string identity;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t equals = line.find('=');
        if (equals == std::string::npos) {
            continue;
        }
        const std::string value = line.substr(equals + 1);
        const std::string name = line.substr(0, equals);
        if (name == "pid") {
            (void)std::from_chars(value.data(), value.data() + value.size(), entry.process.pid);
        } else if (name == "process") {
            identity = value;
        } else if (name == "guest") {
            entry.spawned = entry.spawned ? entry.spawned : Spawned{};
            entry.spawned->guest = value;
        } else if (name == "startup") {
            entry.spawned = entry.spawned ? entry.spawned : Spawned{};
            entry.spawned->startup = value;
        } else if (name == "user") {
            entry.spawned = entry.spawned ? entry.spawned : Spawned{};
            (void)std::from_chars(value.data(), value.data() + value.size(), entry.spawned->user);
        }
    }
    ProcessHandle process = open_process(entry.process.pid);
    if (!process.alive()) {
        return std::nullopt;
    }
    const std::string now = identity_of(process);
    if (!identity.empty() && !now.empty()) {
        entry.process = process;
        return identity == now ? std::optional(std::move(entry)) : std::nullopt;
    }
    entry.uncertain = true;
    return entry;
}

void Processes::note(const Uuid& uuid, const Entry& entry) {
    if (dir_.empty()) {
        return;
    }
    std::string text = fmt::format("pid={}\nprocess={}\n", entry.process.pid, identity_of(entry.process));
    if (entry.spawned && is_plain(entry.spawned->guest) && is_plain(entry.spawned->startup)) {
        text += fmt::format("guest={}\nstartup={}\n", entry.spawned->guest, entry.spawned->startup);
        if (entry.spawned->user != 0) {
            text += fmt::format("user={}\n", entry.spawned->user);
        }
    }
    const std::string path = path_of(uuid);
    const std::string fresh = path + ".new"; // a note that is cut short says nothing
    (void)::mkdir(dir_.c_str(), 0700);
    bool written = false;
    {
        UniqueFd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
        written = fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
    }
    if ((!written || ::rename(fresh.c_str(), path.c_str()) != 0) && !warned_) {
        warned_ = true;
        log_.warning("{}: {}; the next manager does not find this one's instances until they come to it", path,
                     errno_error(errno, "cannot be written").message);
    }
}

void Processes::forget(const Uuid& uuid) {
    if (entries_.erase(uuid) != 0 && !dir_.empty()) {
        (void)::unlink(path_of(uuid).c_str());
    }
}

void Processes::started(const Uuid& uuid, ProcessHandle process, Spawned how) {
    Entry& entry = entries_[uuid];
    entry = {.process = std::move(process), .uncertain = false, .spawned = std::move(how)};
    note(uuid, entry);
}

void Processes::opened(const Uuid& uuid, ProcessHandle process) {
    auto known = entries_.find(uuid);
    if (known != entries_.end() && known->second.process.pid == process.pid &&
        (known->second.process.alive() || known->second.uncertain)) {
        if (process.known()) {
            known->second.process = std::move(process);
            known->second.uncertain = false;
        }
        return;
    }
    if (!process.known()) {
        return; // nothing that could be watched or told of later
    }
    Entry& entry = entries_[uuid];
    entry = {.process = std::move(process), .uncertain = false, .spawned = std::nullopt};
    note(uuid, entry);
}

void Processes::ended(const Uuid& uuid) { forget(uuid); }

ProcessHandle Processes::find(const Uuid& uuid) const {
    const auto it = entries_.find(uuid);
    return it != entries_.end() && it->second.process.alive() ? it->second.process : ProcessHandle{};
}

std::set<uid_t> Processes::users() const {
    std::set<uid_t> out;
    for (const auto& [uuid, entry] : entries_) {
        if (entry.spawned && entry.spawned->user != 0) {
            out.insert(entry.spawned->user);
        }
    }
    return out;
}

std::optional<Uuid> Processes::spawned_for(const ProcessHandle& process) const {
    for (const auto& [uuid, entry] : entries_) {
        // As long as the one that is known lives, its number is no other's.
        if (process.known() && entry.process.pid == process.pid && entry.spawned && entry.process.alive()) {
            return uuid;
        }
    }
    return std::nullopt;
}

std::optional<Processes::Use> Processes::in_use(const Uuid& uuid) const {
    const auto it = entries_.find(uuid);
    if (it == entries_.end()) {
        return std::nullopt;
    }
    const Entry& entry = it->second;
    if (entry.process.alive()) {
        return Use{.pid = entry.process.pid, .why = fmt::format("process {} has it", entry.process.pid)};
    }
    const auto left = begun_ + settle_time - clock_.now();
    if (entry.uncertain && left > Clock::duration::zero()) {
        return Use{.pid = 0,
                   .why = fmt::format("process {} had it when the last manager ended, and may come back; known in {} s",
                                      entry.process.pid,
                                      std::chrono::duration_cast<std::chrono::seconds>(left).count() + 1)};
    }
    return entry.uncertain || entry.image_held ? held(uuid) : std::nullopt;
}

std::optional<Processes::Use> Processes::in_use_now(const Uuid& uuid) const {
    auto use = in_use(uuid);
    return use ? use : held(uuid);
}

std::optional<Processes::Use> Processes::held(const Uuid& uuid) const {
    if (!image_held_ || !image_held_(uuid)) {
        return std::nullopt;
    }
    return Use{.pid = 0, .why = "a process has its image, and has not come to this manager (yet)"};
}

void Processes::look(const Uuid& uuid) {
    if (held(uuid)) {
        entries_[uuid].image_held = true;
    }
}

} // namespace vtpmd::manager
