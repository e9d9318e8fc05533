#include "manager/instances/supervisor.hpp"

#include "util/deadline.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <set>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

/// How often an image that a process has which is not known is looked at again; only while there is one.
constexpr auto adoption_look = std::chrono::seconds(1);

std::string describe(const ExitStatus& status) {
    if (status.unknown) {
        return "how is not known: another manager started it";
    }
    return status.signal != 0 ? fmt::format("killed by signal {}", status.signal)
                              : fmt::format("exit code {}", status.code);
}

/// Both ends close-on-exec; the child's becomes its descriptor 3.
Result<std::pair<UniqueFd, UniqueFd>> make_link() {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return errno_error(errno, "socketpair");
    }
    return std::pair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void remove_left_socket(const std::string& path) {
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (!is_socket(path) || !probe || path.size() >= sizeof address.sun_path) {
        return;
    }
    std::ranges::copy(path, address.sun_path);
    if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
        errno == ECONNREFUSED) {
        (void)::unlink(path.c_str());
    }
}

/// The files of an instance's sockets: in its sandbox it cannot remove them.
void remove_left_sockets(std::string_view guest) {
    constexpr std::string_view scheme = "socket:unix:";
    if (guest.starts_with(scheme)) {
        const std::string path(guest.substr(scheme.size()));
        remove_left_socket(path);
        remove_left_socket(path + ".ctrl");
    }
}

Task<Result<void>> until(StopSignal& stop) {
    co_await stop.wait();
    co_return Result<void>{};
}

} // namespace

Supervisor::Supervisor(SpawnOptions options, std::string listen_path, Parts parts)
    : options_(std::move(options))
    , listen_path_(std::move(listen_path))
    , parts_(std::move(parts))
    , group_(parts_.executor, parts_.log) {}

std::string Supervisor::image_of(const Uuid& uuid) const { return fmt::format("{}/{}.img", options_.state_dir, uuid); }

std::vector<std::string> Supervisor::arguments_of(const Charge& charge, std::optional<uid_t> user) const {
    const std::string image = image_of(charge.uuid);
    const std::string& back = return_path_.empty() ? listen_path_ : return_path_;
    std::vector<std::string> words{
        "--mode=instance",
        fmt::format("--uuid={}", charge.uuid),
        fmt::format("--manager=fd:3{}", back.empty() ? "" : ",unix:" + back),
        fmt::format("--state={}", image),
        fmt::format("--guest={}", charge.guest),
    };
    // Of a TPM that is still to be made; one that is there says itself what it is.
    if (charge.create) {
        words.emplace_back("--create");
        words.push_back(fmt::format("--tpm-version={}", to_string(*charge.create)));
    } else if (options_.tpm_version && !parts_.spawner.image_exists(image)) {
        words.push_back(fmt::format("--tpm-version={}", to_string(*options_.tpm_version)));
    }
    if (charge.restored || !charge.startup.empty()) {
        words.push_back("--startup=" + (charge.startup.empty() ? "save" : charge.startup));
    }
    if (options_.sandbox != SandboxMode::automatic) {
        words.emplace_back(options_.sandbox == SandboxMode::on ? "--sandbox=on" : "--sandbox=off");
    }
    if (user) {
        words.push_back(fmt::format("--user={}", *user));
    }
    words.insert(words.end(), options_.extra_arguments.begin(), options_.extra_arguments.end());
    return words;
}

/// Of the range, the first that no process has which is known; nullopt: they go on as the manager's user.
std::optional<uid_t> Supervisor::free_user() const {
    if (!options_.users || return_path_.empty() || parts_.processes == nullptr) {
        return std::nullopt;
    }
    const std::set<uid_t> taken = parts_.processes->users();
    for (uid_t user = options_.users->first; user <= options_.users->last; ++user) {
        if (!taken.contains(user)) {
            return user;
        }
    }
    return std::nullopt;
}

std::vector<Uuid> Supervisor::choose(const Registry& registry) const {
    if (!options_.only.empty()) {
        return options_.only;
    }
    std::vector<Uuid> chosen;
    for (const auto& [uuid, vtpm] : registry.vtpms()) {
        if (parts_.spawner.image_exists(image_of(uuid))) {
            chosen.push_back(uuid);
        }
    }
    return chosen;
}

void Supervisor::keep(Uuid uuid, std::optional<TpmVersion> create) { keep(uuid, Keeping{.create = create}); }

void Supervisor::keep(Uuid uuid, Keeping how) {
    if (how.guest.empty()) {
        how.guest = fmt::format("socket:unix:{}/{}.sock", options_.run_dir, uuid);
    }
    auto charge = std::make_shared<Charge>(parts_.executor, uuid, std::move(how.guest));
    charge->create = how.create;
    charge->startup = std::move(how.startup);
    kept_[uuid] = charge;
    failures_.erase(uuid);
    auto run = [](Supervisor& self, std::shared_ptr<Charge> of) -> Task<> {
        struct Forget {
            std::unordered_map<Uuid, std::shared_ptr<Charge>>& kept;
            Charge& charge;
            ~Forget() {
                kept.erase(charge.uuid);
                charge.ended.request();
            }
        } forget{self.kept_, *of};
        (void)co_await self.serve(of);
    };
    group_.spawn(fmt::format("instance {}", uuid), run(*this, std::move(charge)));
}

std::shared_ptr<Charge> Supervisor::kept(const Uuid& uuid) const {
    auto it = kept_.find(uuid);
    return it == kept_.end() ? nullptr : it->second;
}

bool Supervisor::in_charge(const Uuid& uuid) const { return kept_.contains(uuid) || charges_.contains(uuid); }

pid_t Supervisor::pid_of(const Uuid& uuid) const {
    auto it = running_.find(uuid);
    return it == running_.end() ? 0 : it->second->process->pid();
}

bool Supervisor::is_unknown(const Uuid& uuid) const {
    const auto [begin, end] = charges_.equal_range(uuid);
    return std::any_of(begin, end, [](const auto& entry) {
        const auto state = entry.second->machine.state();
        return state == Machine::State::unknown || state == Machine::State::leaving;
    });
}

const LastFailure* Supervisor::last_failure(const Uuid& uuid) const {
    auto it = failures_.find(uuid);
    return it == failures_.end() ? nullptr : &it->second;
}

void Supervisor::tell(Charge& charge, Machine::Event event) {
    const Machine::Action action = charge.machine.on(event);
    if (action == Machine::Action::none) {
        return;
    }
    if (charge.watched) {
        charge.process->signal(SIGTERM); // the one thing that a machine whose process is watched can want
        return;
    }
    charge.news = action;
    if (charge.wake) {
        charge.wake->cancel();
    }
}

void Supervisor::release(Charge& charge) {
    charge.released.request();
    tell(charge, Machine::Event::released);
}

void Supervisor::met(const Uuid& uuid, const ProcessHandle& process) {
    if (!process.known() || running_.contains(uuid)) {
        return; // its own child, most often
    }
    const auto it = charges_.find(uuid); // of several, one is served at a time, and is the first
    using S = Machine::State;
    if (it == charges_.end()) {
        return;
    }
    Charge& charge = *it->second;
    const S state = charge.machine.state();
    if (state == S::unknown || state == S::leaving || state == S::waiting) {
        take_up(charge, process);
        tell(charge, Machine::Event::met);
    }
}

void Supervisor::runs(Charge& charge, std::unique_ptr<Child> process) {
    charge.process = std::move(process);
    running_[charge.uuid] = &charge;
    charge.image = std::make_unique<ImageKeeper>(charge.uuid, image_of(charge.uuid), parts_.log);
    charge.image->look();
}

Task<> Supervisor::look_after_images() {
    auto look_at = [this](std::string_view name) {
        constexpr std::string_view ending = ".img";
        if (!name.ends_with(ending)) {
            return;
        }
        const auto uuid = parse_uuid(name.substr(0, name.size() - ending.size()));
        if (const auto it = uuid ? running_.find(*uuid) : running_.end(); it != running_.end()) {
            it->second->image->look();
        }
    };
    co_await watch_folder(options_.state_dir, look_at, parts_.log);
}

void Supervisor::take_up(Charge& charge, const ProcessHandle& process) {
    ++counters_.adopted;
    runs(charge, parts_.spawner.adopt(process));
    parts_.log.info("vTPM {}: its instance, pid {}, runs already; taken up", charge.uuid, process.pid);
}

Task<Result<void>> Supervisor::wait_ended(std::shared_ptr<Charge> charge, Clock::duration patience) {
    Task<Result<void>> ended = until(charge->ended);
    std::string what = fmt::format("vTPM {}: the end of its instance", charge->uuid);
    (void)co_await with_deadline(parts_.clock, patience, what, std::move(ended));
    if (!charge->ended.requested()) {
        co_return make_error(Errc::timed_out, "{} has not come yet{}", what,
                             charge->process ? fmt::format(" (pid {})", charge->process->pid())
                                             : fmt::format(": a process that is not known has its image, {}; fuser "
                                                           "tells which",
                                                           image_of(charge->uuid)));
    }
    co_return Result<void>{};
}

struct Supervisor::Life {
    unsigned failures = 0; ///< in a row
    Clock::duration wait{};
    Clock::time_point begun{};
};

Supervisor::Machine::Event Supervisor::look(Charge& charge) {
    if (parts_.processes != nullptr) {
        if (const ProcessHandle process = parts_.processes->find(charge.uuid); process.known()) {
            take_up(charge, process);
            return Machine::Event::met;
        }
    }
    const bool given_up = abandoning_ && charge.machine.state() == Machine::State::leaving;
    if (given_up || !parts_.spawner.image_in_use(image_of(charge.uuid))) {
        return Machine::Event::image_free;
    }
    if (charge.machine.state() == Machine::State::looking) {
        parts_.log.info("vTPM {}: a process has its image already; waiting for it to come by its link, or to end",
                        charge.uuid);
    }
    return Machine::Event::image_used;
}

Supervisor::Machine::Event Supervisor::start(Charge& charge, Life& life) {
    const Uuid& uuid = charge.uuid;
    const bool own_user = options_.users && !charge.guest.starts_with("xen:");
    const std::optional<uid_t> user = own_user ? free_user() : std::nullopt;
    auto link = make_link();
    Result<void> may = link ? Result<void>{} : link.error();
    if (own_user && !user) {
        const std::string why = fmt::format("vTPM {}: no user of its own is to be had (--instance-users)", uuid);
        if (options_.sandbox == SandboxMode::on) {
            may = make_error(Errc::unavailable, "{}, and --sandbox=on", why);
        } else {
            parts_.log.warning("{}; its instance runs as the manager's", why);
        }
    }
    auto child = may ? parts_.spawner.spawn(options_.executable, arguments_of(charge, user), std::move(link->second))
                     : Result<std::unique_ptr<Child>>(may.error());
    if (!child) {
        // What keeps a process from being started (memory, descriptors) is like a failure of it.
        (void)judge(charge, life, {.code = EX_OSERR}, {}, child.error().message);
        return Machine::Event::not_started;
    }
    ++counters_.started;
    runs(charge, std::move(*child));
    const pid_t pid = charge.process->pid();
    parts_.log.info("vTPM {}: instance started, pid {}", uuid, pid);
    if (parts_.processes != nullptr) {
        parts_.processes->started(uuid, charge.process->handle(),
                                  {.guest = charge.guest, .startup = charge.startup, .user = user.value_or(0)});
    }
    parts_.serve_link(std::move(link->first), uuid, pid);
    return Machine::Event::started;
}

Task<Supervisor::Machine::Event> Supervisor::watch(std::shared_ptr<Charge> charge, Life& life) {
    life.begun = parts_.clock.now();
    charge->watched = true;
    auto status = co_await charge->process->wait();
    if (!status && status.error().code == Errc::canceled) {
        throw boost::system::system_error(asio::error::operation_aborted); // it goes on without us
    }
    std::string why = status ? describe(*status) : status.error().message;
    if (status && charge->process) {
        if (const std::string words = charge->process->last_words(); !words.empty() && *status != ExitStatus{}) {
            why += ": " + words;
        }
    }
    remove_left_sockets(charge->guest);
    if (charge->image) {
        charge->image->look();
        charge->image.reset();
    }
    charge->watched = false;
    charge->process.reset();
    running_.erase(charge->uuid);
    if (parts_.processes != nullptr) {
        parts_.processes->ended(charge->uuid);
    }
    const ExitStatus how = status ? *status : ExitStatus{.code = EX_OSERR};
    co_return judge(*charge, life, how, parts_.clock.now() - life.begun, std::move(why));
}

/// Whether it is started again, and when.
Supervisor::Machine::Event Supervisor::judge(Charge& charge, Life& life, ExitStatus status, Clock::duration served,
                                             std::string why) {
    const Uuid& uuid = charge.uuid;
    if (charge.released.requested()) {
        parts_.log.info("vTPM {}: instance ended ({})", uuid, why);
        return Machine::Event::ended;
    }
    const auto verdict = policy_.after(status, served, life.failures);
    life.failures = verdict.failures;
    life.wait = verdict.wait;
    if (status == ExitStatus{}) {
        parts_.log.info("vTPM {}: instance ended in good order; starting it for the next guest", uuid);
        return Machine::Event::ended;
    }
    ++counters_.failed;
    ++charge.failures;
    failures_[uuid] = {.why = why, .when = parts_.unix_time ? parts_.unix_time() : 0, .final = verdict.give_up};
    if (verdict.give_up) {
        ++counters_.given_up;
        parts_.log.error("vTPM {}: instance ended ({}); trying again would not help", uuid, why);
        return Machine::Event::ended_for_good;
    }
    parts_.log.warning("vTPM {}: instance ended ({}); starting it again in {} s", uuid, why, verdict.wait.count());
    return Machine::Event::ended;
}

/// nullopt: there is news.
Task<std::optional<Supervisor::Machine::Event>> Supervisor::pause(std::shared_ptr<Charge> charge, Clock::duration d) {
    auto until_news = [](std::shared_ptr<asio::steady_timer> wake) -> Task<Result<void>> {
        (void)co_await wake->async_wait(use_tuple);
        co_return Result<void>{};
    };
    charge->wake = std::make_shared<asio::steady_timer>(parts_.executor, asio::steady_timer::time_point::max());
    Task<Result<void>> news = until_news(charge->wake);
    (void)co_await with_deadline(parts_.clock, d, "pause", std::move(news));
    charge->wake.reset();
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) {
        throw boost::system::system_error(asio::error::operation_aborted); // nothing is started any more
    }
    co_return charge->news ? std::nullopt : std::optional(Machine::Event::pause_over);
}

Task<bool> Supervisor::serve(std::shared_ptr<Charge> charge) {
    struct Listed {
        Supervisor& self;
        Charge& charge;
        std::unordered_multimap<Uuid, Charge*>::iterator entry;
        ~Listed() {
            self.charges_.erase(entry);
            if (charge.process) { // cancelled: it goes on
                self.running_.erase(charge.uuid);
            }
            charge.watched = false;
        }
    } listed{*this, *charge, charges_.emplace(charge->uuid, charge.get())};
    using A = Machine::Action;
    Life life;
    A todo = stopping_ ? A::finish : A::look;
    while (todo != A::finish) {
        if (charge->news) {
            todo = *std::exchange(charge->news, std::nullopt);
            continue;
        }
        std::optional<Machine::Event> event;
        switch (todo) {
        case A::look:
            event = look(*charge);
            break;
        case A::start:
            event = start(*charge, life);
            break;
        case A::signal:
            charge->process->signal(SIGTERM);
            event = co_await watch(charge, life);
            break;
        case A::watch:
            event = co_await watch(charge, life);
            break;
        case A::pause: {
            const bool looks = charge->machine.state() != Machine::State::waiting;
            event = co_await pause(charge, looks ? Clock::duration(adoption_look) : Clock::duration(life.wait));
            break;
        }
        case A::none:
        case A::finish:
            break;
        }
        if (event) {
            todo = charge->machine.on(*event);
        }
    }
    co_return charge->machine.state() != Machine::State::given_up;
}

Task<> Supervisor::leave() {
    stopping_ = true;
    if (!running_.empty()) {
        parts_.log.info("{} instances go on without the manager; the next one finds them", running_.size());
    }
    group_.cancel();
    co_await group_.join();
}

Task<> Supervisor::stop(Clock::duration patience) {
    stopping_ = true;
    const auto charges = charges_; // one that is released may end at once
    for (const auto& [uuid, charge] : charges) {
        release(*charge);
    }
    auto all_gone = [](TaskGroup& group) -> Task<Result<void>> {
        co_await group.join();
        co_return Result<void>{};
    };
    // join() cannot be cancelled, so the killing is what runs beside it.
    auto kill_later = [](Supervisor& self, Clock::duration d) -> Task<> {
        if (auto stopped = co_await self.parts_.clock.sleep_for(d)) {
            co_return;
        }
        for (auto& [uuid, charge] : self.running_) {
            self.parts_.log.warning("vTPM {}: instance pid {} does not stop; killing it", uuid, charge->process->pid());
            charge->process->signal(SIGKILL);
        }
        self.abandoning_ = true;
    };
    TaskGroup killer(parts_.executor, parts_.log);
    killer.spawn("kill", kill_later(*this, patience));
    (void)co_await all_gone(group_);
    killer.cancel();
    co_await killer.join();
}

} // namespace vtpmd::manager
