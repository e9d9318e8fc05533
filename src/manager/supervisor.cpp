#include "manager/supervisor.hpp"

#include "util/deadline.hpp"

#include <algorithm>
#include <csignal>
#include <sys/socket.h>

namespace vtpmd::manager {

namespace {

/// How often an image that another process has is looked at again; only while there is one.
constexpr auto adoption_look = std::chrono::seconds(1);

std::string describe(const ExitStatus& status) {
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

std::vector<std::string> Supervisor::arguments_of(const Charge& charge) const {
    const std::string image = image_of(charge.uuid);
    std::vector<std::string> words{
        "--mode=instance",
        fmt::format("--uuid={}", charge.uuid),
        fmt::format("--manager=fd:3{}", listen_path_.empty() ? "" : ",unix:" + listen_path_),
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
    words.insert(words.end(), options_.extra_arguments.begin(), options_.extra_arguments.end());
    return words;
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
    auto it = children_.find(uuid);
    return it == children_.end() ? 0 : it->second->pid();
}

void Supervisor::release(Charge& charge) {
    charge.released.request();
    if (auto it = children_.find(charge.uuid); charge.pid != 0 && it != children_.end()) {
        it->second->signal(SIGTERM);
    }
}

Task<Result<void>> Supervisor::wait_ended(std::shared_ptr<Charge> charge, Clock::duration patience) {
    Task<Result<void>> ended = until(charge->ended);
    std::string what = fmt::format("vTPM {}: the end of its instance", charge->uuid);
    (void)co_await with_deadline(parts_.clock, patience, what, std::move(ended));
    if (!charge->ended.requested()) {
        co_return make_error(Errc::timed_out, "{} has not come yet", what);
    }
    co_return Result<void>{};
}

/// True if it is time to stop.
Task<bool> Supervisor::pause(Charge& charge, Clock::duration d) {
    Task<Result<void>> stop = until(charge.released);
    (void)co_await with_deadline(parts_.clock, d, "pause", std::move(stop));
    co_return charge.released.requested();
}

/// False if it is time to stop.
Task<bool> Supervisor::wait_until_free(Charge& charge) {
    const Uuid& uuid = charge.uuid;
    const std::string image = image_of(uuid);
    if (!parts_.spawner.image_in_use(image)) {
        co_return true;
    }
    ++counters_.adopted;
    parts_.log.info("vTPM {}: its instance is running already; left alone", uuid);
    while (parts_.spawner.image_in_use(image)) {
        bool stop = co_await pause(charge, adoption_look);
        if (stop) {
            co_return false;
        }
    }
    parts_.log.info("vTPM {}: the instance that was running already has ended", uuid);
    co_return true;
}

Task<Result<Supervisor::Outcome>> Supervisor::run_child(Charge& charge) {
    const Uuid& uuid = charge.uuid;
    auto link = make_link();
    if (!link) {
        co_return link.error();
    }
    auto child = parts_.spawner.spawn(options_.executable, arguments_of(charge), std::move(link->second));
    if (!child) {
        co_return child.error();
    }
    ++counters_.started;
    parts_.log.info("vTPM {}: instance started, pid {}", uuid, (*child)->pid());
    children_[uuid] = child->get();
    charge.pid = (*child)->pid();
    struct Forget {
        std::unordered_map<Uuid, Child*>& children;
        Charge& charge;
        ~Forget() {
            children.erase(charge.uuid);
            charge.pid = 0;
        }
    } forget{children_, charge};
    parts_.serve_link(std::move(link->first), uuid, (*child)->pid());

    const auto begun = parts_.clock.now();
    auto status = co_await (*child)->wait();
    if (!status) {
        co_return status.error();
    }
    co_return Outcome{.status = *status, .served = parts_.clock.now() - begun};
}

Task<bool> Supervisor::serve(std::shared_ptr<Charge> charge) {
    struct Listed {
        std::unordered_multimap<Uuid, Charge*>& charges;
        std::unordered_multimap<Uuid, Charge*>::iterator entry;
        ~Listed() { charges.erase(entry); }
    } listed{charges_, charges_.emplace(charge->uuid, charge.get())};
    const Uuid& uuid = charge->uuid;
    unsigned failures = 0;
    while (!stopping_ && !charge->released.requested()) {
        bool free = co_await wait_until_free(*charge);
        if (!free) {
            break;
        }
        auto outcome = co_await run_child(*charge);
        if (!outcome && outcome.error().code == Errc::canceled) {
            break;
        }
        // What keeps a process from being started (memory, descriptors) is like a failure of it.
        const ExitStatus status = outcome ? outcome->status : ExitStatus{.code = EX_OSERR};
        const std::string why = outcome ? describe(status) : outcome.error().message;
        if (charge->released.requested()) {
            parts_.log.info("vTPM {}: instance ended ({})", uuid, why);
            break;
        }
        const auto verdict = policy_.after(status, outcome ? outcome->served : Clock::duration{}, failures);
        failures = verdict.failures;
        if (status == ExitStatus{}) {
            parts_.log.info("vTPM {}: instance ended in good order; starting it for the next guest", uuid);
        } else if (verdict.give_up) {
            ++counters_.failed;
            ++counters_.given_up;
            parts_.log.error("vTPM {}: instance ended ({}); trying again would not help, see its message", uuid, why);
            co_return false;
        } else {
            ++counters_.failed;
            parts_.log.warning("vTPM {}: instance ended ({}); starting it again in {} s", uuid, why,
                               verdict.wait.count());
        }
        (void)co_await pause(*charge, verdict.wait);
    }
    co_return true;
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
        for (auto& [uuid, child] : self.children_) {
            self.parts_.log.warning("vTPM {}: instance pid {} does not stop; killing it", uuid, child->pid());
            child->signal(SIGKILL);
        }
    };
    TaskGroup killer(parts_.executor, parts_.log);
    killer.spawn("kill", kill_later(*this, patience));
    (void)co_await all_gone(group_);
    killer.cancel();
    co_await killer.join();
}

} // namespace vtpmd::manager
