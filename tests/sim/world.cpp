// The loop of the simulated host, and what makes processes come and go.
#include "world.hpp"

#include "manager/vault/recovery_file.hpp"
#include "proto/link/client.hpp"

#include <fmt/core.h>

namespace vtpmd::sim {

namespace {

using std::chrono::seconds;

Uuid uuid_of(std::uint8_t kind, std::size_t n) {
    Uuid u;
    u.bytes[0] = static_cast<std::byte>(kind);
    u.bytes[15] = static_cast<std::byte>(n + 1);
    return u;
}

} // namespace

World::World(Config config, std::string folder, bool loud)
    : config_(config)
    , folder_(std::move(folder))
    , loud_(loud)
    , now_(std::chrono::hours(1000)) {
    seed_chance(config.chance);
    manager::discard_recovery_file(folder_ + "/recovery");
    for (std::size_t n = 0; n < config.vtpms; ++n) {
        uuids_.push_back(uuid_of(0x76, n));
        model_.vtpms.emplace_back();
    }
    for (std::size_t n = 0; n < config.groups; ++n) {
        group_uuids_.push_back(uuid_of(0x67, n));
        model_.groups.emplace_back();
    }
    auto hook = [this](bool after) {
        return [this, after](std::string_view operation) -> std::optional<Error> {
            if (manager_ && manager_->process.dead) {
                return make_error(Errc::closed, "the process is gone");
            }
            if (after && operation == "counter_increment") {
                ++counter_steps_;
            }
            if (tpm_fault_left_ > 0 && after == tpm_fault_after_) {
                if (tpm_fault_in_ > 0) {
                    --tpm_fault_in_;
                } else {
                    --tpm_fault_left_;
                    return make_error(Errc::tpm, "the TPM does not answer");
                }
            }
            return std::nullopt;
        };
    };
    tpm_.before = hook(false);
    tpm_.after = hook(true);
    tpm_.pcrs[{hwtpm::HashAlg::sha256, 4}] = Bytes(32, std::byte{0xa0});
}

World::~World() {
    try {
        for (auto& i : instances_) {
            end_instance(*i, true);
        }
        (void)end_manager(true);
    } catch (const std::exception& e) {
        fmt::print(stderr, "at the end: {}\n", e.what());
    }
    manager::discard_recovery_file(folder_ + "/recovery");
    for (std::uint64_t n = 1; n < next_recovery_; ++n) {
        manager::discard_recovery_file(fmt::format("{}/recovery-{}", folder_, n));
    }
}

void World::say(std::string line) {
    if (loud_) {
        fmt::print("    {}\n", line);
    }
    lines_.push_back(std::move(line));
    if (lines_.size() > 400) {
        lines_.erase(lines_.begin(), lines_.begin() + 200);
    }
}

void World::broken(std::string what) {
    if (!broken_) {
        broken_ = std::move(what);
    }
}

void World::check() const {
    if (broken_) {
        throw Violation(*broken_);
    }
}

void World::note(std::uint64_t what) { trace_ = (trace_ ^ what) * 1099511628211ULL; }

std::vector<Process*> World::processes() {
    std::vector<Process*> all;
    if (manager_) {
        all.push_back(&manager_->process);
    }
    for (auto& i : instances_) {
        all.push_back(&i->process);
    }
    return all;
}

bool World::faults_armed() const {
    if (tpm_fault_left_ > 0 || power_plan_) {
        return true;
    }
    return std::ranges::any_of(files_.all(), [](const auto& file) {
        const test::FaultDisk& d = *file.second.disk;
        const auto& p = d.plan;
        return p.fail_at != test::never && d.operations() < std::max(p.fail_until, p.fail_at + 1);
    });
}

void World::see_power() const {
    for (const auto& [path, file] : files_.all()) {
        if (file.disk->dead()) {
            throw PowerGone();
        }
    }
}

bool World::turn_any(Random& order) {
    const auto all = processes();
    if (all.empty()) {
        return false;
    }
    const auto first = order.below(static_cast<std::uint32_t>(all.size()));
    for (std::size_t k = 0; k < all.size(); ++k) {
        if (all[(first + k) % all.size()]->turn()) {
            check();
            if (power_plan_) {
                see_power();
            }
            return true;
        }
    }
    return false;
}

void World::turns(std::uint32_t count, std::uint64_t seed) {
    Random order(seed);
    while (count-- > 0 && turn_any(order)) {
    }
}

void World::idle() {
    Random order(7);
    std::uint32_t rounds = 0;
    while (turn_any(order)) {
        if (++rounds > 3'000'000) {
            throw Violation("it never comes to rest");
        }
    }
}

void World::advance(Clock::duration by) {
    now_ += by;
    for (Process* p : processes()) {
        p->clock.advance(now_ - p->clock.now());
    }
}

bool World::until(const std::function<bool()>& done, seconds limit) {
    const auto end = now_ + limit;
    for (;;) {
        idle();
        if (done()) {
            return true;
        }
        Clock::time_point next = Clock::time_point::max();
        for (Process* p : processes()) {
            if (auto due = p->clock.next_due(); due > now_) {
                next = std::min(next, due);
            }
        }
        if (next > end) {
            return false;
        }
        advance(next - now_);
    }
}

/// Of a process that is dead: the others stand still, and its time passes for it alone.
void World::alone(Process& process, const std::function<bool()>& done) {
    const auto end = process.clock.now() + std::chrono::hours(2);
    for (;;) {
        std::uint32_t rounds = 0;
        while (process.turn()) {
            check();
            if (++rounds > 3'000'000) {
                throw Violation(process.name + ": does not come to rest at its end");
            }
        }
        if (done()) {
            return;
        }
        const auto due = process.clock.next_due();
        if (due <= process.clock.now() || due > end) {
            throw Violation(process.name + ": does not end");
        }
        process.clock.advance(due - process.clock.now());
    }
}

/// What has refused to start.
void World::reap() {
    if (manager_ && manager_->refused && manager_->operations == 0 && !manager_->process.dead) {
        (void)end_manager(true);
    }
    for (bool again = true; again;) {
        again = false;
        for (auto& i : instances_) {
            if (i->refused && i->operations == 0 && !i->process.dead) {
                end_instance(*i, true);
                again = true;
                break;
            }
        }
    }
}

// --- the manager ---

namespace {

Task<Result<std::unique_ptr<manager::Vault>>> open_or_create(manager::Vault::Options options,
                                                             manager::Vault::Parts parts, std::string recovery,
                                                             manager::FreshnessPolicy created, bool create) {
    if (create) {
        manager::Vault::Options first = options;
        manager::Vault::Parts first_parts = parts;
        first.recovery_file = recovery;
        first.freshness = created;
        auto made = co_await manager::Vault::create(std::move(first), std::move(first_parts));
        if (made || made.error().code != Errc::exists) {
            co_return made;
        }
    }
    // As an operator does it: what a refusal says is not needed is left out, and its word is given where it asks for one. (Where a
    // counter can be compared it asks for none: then an old copy stays refused.)
    for (int tries = 0;; ++tries) {
        manager::Vault::Options these = options;
        manager::Vault::Parts these_parts = parts;
        auto opened = co_await manager::Vault::open(std::move(these), std::move(these_parts));
        if (opened || tries == 2) {
            co_return opened;
        }
        const Error& why = opened.error();
        if (why.code == Errc::usage && !options.recovery_file.empty() &&
            why.message.find("not needed") != std::string::npos) {
            options.recovery_file.clear();
        } else if (why.code == Errc::rollback && why.message.find("--accept-counter=none") != std::string::npos) {
            options.accept_no_counter = true;
        } else {
            co_return opened;
        }
    }
}

manager::FreshnessPolicy policy(std::uint32_t number) {
    using Mode = manager::FreshnessPolicy::Mode;
    return {.mode = number == 0 ? Mode::off : number == 2 ? Mode::strict : Mode::window};
}

Task<Result<void>> with_groups(manager::Groups& groups) {
    co_await groups.open_all();
    co_return Result<void>{};
}

} // namespace

manager::Vault::Options World::vault_options() const {
    manager::Vault::Options options;
    options.size = std::uint64_t{config_.store_kib} * 1024;
    options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha256, .pcrs = {0}};
    options.freshness = policy(config_.freshness);
    return options;
}

manager::Vault::Parts World::vault_parts(Manager& m) const {
    return {.executor = m.process.executor(),
            .place = *m.place,
            .root = m.root,
            .clock = m.process.clock,
            .log = m.process.log,
            .unix_time = [] { return std::uint64_t{1'700'000'000}; }};
}

void World::start_manager(const std::string& recovery_file, const std::function<void()>& and_then) {
    manager_ = std::make_unique<Manager>(files_, tpm_, [this](const std::string& l) { say(l); });
    Manager& m = *manager_;
    m.process.clock.advance(now_ - m.process.clock.now());
    m.opening = true;
    m.trouble = faults_armed();
    const std::string key = folder_ + "/recovery";
    if (!store_made_) {
        manager::discard_recovery_file(key);
    }
    manager::Vault::Options options = vault_options();
    options.recovery_file = recovery_file;
    auto open = open_or_create(std::move(options), vault_parts(m), config_.recovery != 0 ? key : "",
                               policy(config_.created_freshness), !store_made_);
    run_in<std::unique_ptr<manager::Vault>>(
        m.process, m.operations, std::move(open),
        [this, &m, and_then](Result<std::unique_ptr<manager::Vault>> made, bool dead) {
            m.opening = false;
            if (!made) {
                say("the manager does not start: " + made.error().message);
                m.refused = std::move(made).error();
            } else {
                m.vault = std::move(*made);
                if (!dead) {
                    freshness_began_ =
                        freshness_began_ || (store_made_ ? config_.freshness : config_.created_freshness) != 0;
                    if (!std::exchange(store_made_, true) && config_.recovery != 0) {
                        know_recovery_key(folder_ + "/recovery");
                    }
                    opened(m);
                }
            }
            if (and_then && !dead) {
                and_then();
            }
        });
}

void World::opened(Manager& m) {
    using namespace manager;
    m.groups.emplace(
        Groups::Parts{.executor = m.process.executor(), .vault = *m.vault, .root = m.root, .log = m.process.log});
    m.quotes.emplace(DeepQuotes::Parts{.vault = *m.vault, .root = m.root, .groups = *m.groups});
    m.certifier.emplace(
        Certifier::Parts{.executor = m.process.executor(), .vault = *m.vault, .log = m.process.log, .unix_time = [] {
                             return std::uint64_t{1'790'000'000};
                         }});
    KeyService::Parts parts{
        .executor = m.process.executor(),
        .vault = *m.vault,
        .root = m.root,
        .clock = m.process.clock,
        .log = m.process.log,
        .admit = [&m](const Uuid& u, const proto::BootHash& l) { return m.groups->admit(u, l); },
        .quote = [&m](const Uuid& u, proto::QuoteRequest r) { return m.quotes->make(u, std::move(r)); },
        .certify = [&m](const Uuid& u, proto::CertifyRequest r) { return m.certifier->certify(u, std::move(r)); }};
    m.service = std::make_unique<KeyService>(KeyService::Options{}, std::move(parts));
    m.vault->freshness().on_fatal([&m](const Error& e) { m.fatal = e; });
    run_in<void>(m.process, m.operations, with_groups(*m.groups), [this, &m](Result<void>, bool dead) {
        if (!dead) {
            m.tasks.spawn("freshness", m.vault->freshness().run());
            m.serving = true;
            disturbed_at_ = now_; // instances come back to it one after the other
            check_restart();
        }
    });
}

Task<Result<void>> World::teardown(Manager& m) {
    m.tasks.cancel();
    co_await m.tasks.join();
    if (m.service) {
        m.service->stop_asking();
        m.service->stop();
    }
    if (m.process.dead) {
        m.links.cancel();
    }
    co_await m.links.join();
    Result<void> closed;
    if (m.vault) {
        closed = co_await m.vault->close();
    }
    co_return closed;
}

/// Nothing of it is under way that steps the counter.
bool World::level(const Manager& m) {
    return m.serving && m.operations == 0 && !m.opening && !m.trouble && !m.vault->freshness().owed();
}

/// False: there was none.
bool World::end_manager(bool killed) {
    if (!manager_ || manager_->process.dead) {
        return false;
    }
    disturb();
    Manager& m = *manager_;
    left_level_ = level(m);
    if (!killed && !until([&m] { return m.operations == 0; }, std::chrono::hours(1))) {
        throw Violation("an operation of the manager never ends");
    }
    m.serving = false;
    m.process.dead = killed;
    if (killed) {
        for (auto& i : instances_) {
            i->cut();
        }
        alone(m.process, [&m] { return m.operations == 0; });
    }
    auto ended = std::make_shared<bool>(false);
    const bool calm = !m.trouble && !faults_armed() && !m.fatal;
    run_in<void>(m.process, m.operations, teardown(m), [this, ended, calm](Result<void> closed, bool dead) {
        *ended = true;
        if (!closed && calm && !dead) {
            broken("the manager does not stop in good order: " + closed.error().message);
        }
    });
    if (killed) {
        alone(m.process, [&] { return *ended; });
    } else if (!until([&] { return *ended; }, std::chrono::hours(1))) {
        throw Violation("the manager does not stop");
    }
    m.process.dead = true;
    alone(m.process, [] { return true; });
    m.service.reset();
    m.certifier.reset();
    m.quotes.reset();
    m.groups.reset();
    m.vault.reset();
    manager_.reset();
    put_rescued("manager.img");
    return true;
}

// --- instances ---

Inst* World::find(std::size_t vtpm, bool twin) {
    for (auto& i : instances_) {
        if (i->vtpm == vtpm && i->twin == twin && !i->process.dead) {
            return i.get();
        }
    }
    return nullptr;
}

namespace {

Task<Result<void>> boot(Inst& i, Uuid uuid, std::string path, bool create) {
    instance::ImageRequest wanted{.uuid = uuid, .path = path, .version = TpmVersion::tpm20};
    auto found = co_await instance::find_image(std::move(wanted), i.io, i.process.log);
    if (!found) {
        co_return found.error();
    }
    instance::OpenRequest request{.uuid = uuid, .path = path, .create = create};
    auto opened = co_await instance::open_vtpm(std::move(request), std::move(*found), i.io, *i.client, i.process.log);
    if (!opened) {
        co_return opened.error();
    }
    i.image = std::move(opened->image);
    i.fresh = opened->fresh;
    instance::InstanceConfig config{.uuid = uuid};
    instance::InstanceParts parts{i.process.executor(), i.engine,      *i.image, *i.client,
                                  i.process.clock,      i.process.log, [] {},    {}};
    i.instance = std::make_unique<instance::Instance>(std::move(config), std::move(parts));
    co_return co_await i.instance->start(std::move(opened->state));
}

Task<Result<void>> close(Inst& i) {
    Result<void> ended;
    if (i.instance) {
        ended = co_await i.instance->close();
    }
    co_return ended;
}

} // namespace

Task<Result<std::unique_ptr<proto::Channel>>> World::connect(Inst& i) {
    if (i.process.dead || i.cut_off || !manager_ || !manager_->serving) {
        co_return make_error(Errc::not_found, "no such socket");
    }
    auto in = std::make_shared<Link::Way>(i.process.executor());
    auto out = std::make_shared<Link::Way>(manager_->process.executor());
    i.wires.push_back({out, in});
    for (auto& [reader, way] : {std::pair(&i.process, in), std::pair(&manager_->process, out)}) {
        reader->at_end.emplace_back([way = std::weak_ptr(way)] {
            if (const auto there = way.lock()) {
                there->reader_gone();
            }
        });
    }
    manager::LinkInfo info;
    info.peer_gone = [out] { return out->closed; };
    std::unique_ptr<proto::Channel> theirs = std::make_unique<Link>(out, in, i.process.name);
    manager_->links.spawn("link", manager_->service->serve(std::move(theirs), std::move(info)));
    std::unique_ptr<proto::Channel> mine = std::make_unique<Link>(in, out, "the manager");
    co_return mine;
}

void World::start_instance(std::size_t n, bool twin, bool create) {
    VtpmModel& v = model_.vtpms[n];
    auto make = [this, &v] {
        const std::uint64_t number = next_tpm_++;
        v.maybe.insert(number);
        v.counted[number] = {};
        return number;
    };
    instances_.push_back(std::make_unique<Inst>(
        n, twin, files_, [this](const std::string& l) { say(l); }, std::move(make)));
    Inst& i = *instances_.back();
    i.process.clock.advance(now_ - i.process.clock.now());
    i.trouble = faults_armed();
    i.booting = true;
    auto link = [this, &i] { return connect(i); };
    proto::ClientOptions options;
    options.greeting = {uuids_[n], TpmVersion::tpm20, create, false};
    options.spread_seed = 1;
    i.client =
        proto::make_manager_client(i.process.executor(), options, std::move(link), i.process.clock, i.process.log);
    const bool alone_here = std::ranges::none_of(
        instances_, [&](const auto& o) { return o.get() != &i && o->vtpm == n && !o->process.dead; });
    const bool registered = v.presence.certain() && v.presence.quiet() && v.presence.value() == Presence::there;
    // A full store takes no new one.
    const bool could = create && model_.fill.empty() && v.presence.certain() && v.presence.quiet() &&
                       v.presence.value() == Presence::absent;
    const bool calm = healthy() && alone_here && !twin && !v.lossy && !v.twinned && !v.unclear &&
                      (v.tpm || (create && v.given_up.empty())) && (registered || could) && v.group.certain() &&
                      group_opens(v.group.value());
    const std::uint64_t before = disturbances_;
    const bool asks = create && !registered;
    if (asks) {
        v.presence.begin(Presence::there);
        v.group.begin(0);
        v.name.begin({});
    }
    const std::string path = fmt::format("{}{}.img", n, twin ? "-twin" : "");
    run_in<void>(i.process, i.operations, boot(i, uuids_[n], path, create),
                 [this, &i, &v, calm, asks, before](Result<void> outcome, bool dead) {
                     i.booting = false;
                     if (asks && outcome && !dead) {
                         v.presence.acknowledged(Presence::there);
                         v.group.either(); // it was there, or was made now
                         v.name.either();
                     } else if (asks) {
                         v.presence.unknown();
                         v.group.unknown();
                         v.name.unknown();
                     }
                     if (dead) {
                         return;
                     }
                     booted(i, std::move(outcome), calm && before == disturbances_);
                 });
}

void World::booted(Inst& i, Result<void> outcome, bool calm) {
    VtpmModel& v = model_.vtpms[i.vtpm];
    if (!outcome) {
        say(fmt::format("{} does not start: {}", i.process.name, outcome.error().message));
        if (calm && v.presence.quiet() && v.presence.value() == Presence::there) { // not deleted while it started
            broken(fmt::format("vTPM {} does not start: {}", i.vtpm, outcome.error().message));
        }
        i.refused = outcome.error();
        const std::string own = fmt::format("{}.img", i.vtpm), other = fmt::format("{}-other.img", i.vtpm);
        if (outcome.error().code == Errc::rollback && v.unclear && !i.twin &&
            files_.find(other) != nullptr) { // then the other one had the last word
            const Bytes refused = files_.content(own);
            files_.put(own, files_.content(other));
            files_.put(other, refused);
        }
        return;
    }
    i.up = true;
    v.twinned = i.twin;
    v.unclear = i.twin;
    for (auto& o : instances_) {
        if (o.get() != &i && o->vtpm == i.vtpm) {
            o->stale = true;
        }
    }
    const Count now = i.engine.now();
    say(fmt::format("{} is up: TPM {}, count {}", i.process.name, now.tpm, now.value));
    if (!v.presence.allows(Presence::there)) {
        broken(fmt::format("vTPM {} runs, and it is not to be there", i.vtpm));
    }
    if (v.given_up.contains(now.tpm)) {
        broken(fmt::format("vTPM {}: TPM {}, which was given up, is back", i.vtpm, now.tpm));
    }
    if (v.tpm && *v.tpm != now.tpm && !v.may_be_reset) {
        broken(fmt::format("vTPM {}: it was TPM {}, now it is TPM {}", i.vtpm, *v.tpm, now.tpm));
    }
    if ((!v.tpm || *v.tpm != now.tpm) && !v.maybe.contains(now.tpm)) {
        broken(fmt::format("vTPM {}: TPM {} is another's", i.vtpm, now.tpm));
    }
    if (v.tpm && *v.tpm != now.tpm) {
        v.given_up.insert(*v.tpm);
    }
    v.tpm = now.tpm;
    v.may_be_reset = false;
    auto& counted = v.counted[now.tpm];
    if (now.value < counted.acknowledged || now.value > counted.most) {
        broken(fmt::format("vTPM {}: it counted to {}, which was acknowledged; now it is at {} (at most {})", i.vtpm,
                           counted.acknowledged, now.value, counted.most));
    }
    counted.acknowledged = now.value;
    if (std::ranges::none_of(instances_, [&i](const auto& o) { return o.get() != &i && o->vtpm == i.vtpm; })) {
        counted.most = now.value; // what nobody was told of is decided
    }
    if (v.group.certain() && v.group.quiet() && healthy() && !group_opens(v.group.value()) &&
        model_.groups[v.group.value() - 1].sequence.quiet()) {
        broken(fmt::format("vTPM {} runs, and its group's platform is not this one", i.vtpm));
    }
}

void World::end_instance(Inst& i, bool killed) {
    disturb();
    // Who hands over waits for the manager, until its end.
    if (!killed && !until([&i] { return i.operations == 0 || i.handing_over; }, seconds(600))) {
        throw Violation(fmt::format("{}: an operation never ends", i.process.name));
    }
    if (i.process.dead) {
        return;
    }
    i.process.dead = killed;
    i.up = false;
    i.hold_up(false); // the end of a process is not held up
    if (killed) {
        i.client->close();
        alone(i.process, [&i] { return i.operations == 0; });
    }
    auto ended = std::make_shared<bool>(false);
    run_in<void>(i.process, i.operations, close(i), [ended](Result<void>, bool) { *ended = true; });
    if (killed) {
        alone(i.process, [&] { return *ended; });
    } else if (!until([&] { return *ended && i.operations == 0; }, seconds(120))) {
        throw Violation(fmt::format("{}: does not stop", i.process.name));
    }
    i.process.dead = true;
    i.client->close();
    alone(i.process, [] { return true; });
    i.instance.reset();
    i.client.reset();
    i.image.reset();
    if (!i.twin) {
        put_rescued(fmt::format("{}.img", i.vtpm));
    }
    std::erase_if(instances_, [&i](const auto& o) { return o.get() == &i; });
}

void World::power_cut(test::FaultDisk::Loss loss, std::size_t parameter) {
    say("power goes");
    disturb();
    power_plan_.reset();
    (void)end_manager(true);
    while (!instances_.empty()) {
        end_instance(*instances_.front(), true);
    }
    for (auto& [path, file] : files_.all()) {
        Bytes left = file.disk->after_crash(loss, parameter);
        file = Files::File(std::move(left));
    }
    tpm_fault_left_ = 0;
}

} // namespace vtpmd::sim
