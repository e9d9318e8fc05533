// One step after another, and the audit at the end.
#include "world.hpp"

#include "manager/vault/recovery_file.hpp"

namespace vtpmd::sim {

using std::chrono::seconds;
using Loss = test::FaultDisk::Loss;

namespace {

Loss loss_of(std::uint32_t b) {
    constexpr std::array<Loss, 4> all{Loss::all, Loss::none, Loss::prefix, Loss::sectors};
    return all[b % all.size()];
}

/// A backup is read to its end, and kept.
Task<Result<void>> read_backup(manager::Vault& vault, std::shared_ptr<Bytes> into) {
    auto copy = co_await vault.copy();
    if (!copy) {
        co_return copy.error();
    }
    Bytes part(65'536);
    for (;;) {
        auto n = co_await (*copy)->read(part);
        if (!n) {
            co_return n.error();
        }
        if (*n == 0) {
            co_return Result<void>{};
        }
        into->insert(into->end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(*n));
    }
}

} // namespace

void World::step(const Step& s) {
    note(static_cast<std::uint64_t>(s.kind));
    try {
        act(s);
        if (s.turns == Step::until_done) {
            auto quiet = [this] {
                return (!manager_ || manager_->operations == 0) &&
                       std::ranges::all_of(instances_, [](const auto& i) { return i->operations == 0; });
            };
            // Who waits for a manager that is not there waits for long.
            (void)until(quiet, seconds(5));
        } else if (s.turns == Step::until_idle) {
            idle();
        } else {
            turns(s.turns, s.c);
        }
    } catch (const PowerGone&) {
        const auto plan = power_plan_.value_or(std::pair(Loss::all, std::size_t{0}));
        power_cut(plan.first, plan.second);
    }
    reap();
    watch();
    check();
    note(static_cast<std::uint64_t>(now_.time_since_epoch().count()));
}

void World::act(const Step& s) {
    const std::size_t n = s.a % uuids_.size();
    Inst* i = find(n, false);
    Inst* other = s.b == 1 ? find(n, true) : i;
    switch (s.kind) {
    case Kind::add:
    case Kind::read:
        if (other != nullptr && other->up) {
            guest(*other, s.kind == Kind::add);
        }
        break;
    case Kind::start:
        if (i == nullptr && manager_) {
            put_newest_image(n);
            start_instance(n, false, s.b % 4 != 3);
        }
        break;
    case Kind::stop:
    case Kind::kill:
        if (other != nullptr) {
            end_instance(*other, s.kind == Kind::kill);
        }
        break;
    case Kind::twin: {
        const Bytes image = files_.content(fmt::format("{}.img", n));
        if (i != nullptr && i->up && find(n, true) == nullptr && !image.empty()) {
            i->copied = i->copied || i->operations > 0;
            if (!model_.vtpms[n].twinned) { // else the newest is the one that it had
                files_.put(fmt::format("{}-twin.img", n), image);
            }
            start_instance(n, true, false);
        }
        break;
    }
    case Kind::serve:
        if (!manager_) {
            serve(s.b == 1 ? recovery_file_of(model_, s.c) : "");
        }
        break;
    case Kind::end:
        (void)end_manager(false);
        break;
    case Kind::kill_manager:
        (void)end_manager(true);
        break;
    case Kind::power:
        power_cut(loss_of(s.b), s.c);
        break;
    case Kind::create:
    case Kind::remove:
    case Kind::rename:
    case Kind::move:
    case Kind::reset:
    case Kind::group_create:
    case Kind::group_remove:
    case Kind::group_update:
    case Kind::group_ca:
        manage(s);
        break;
    case Kind::disk_fails:
    case Kind::disk_dies:
    case Kind::tpm_fails:
        arm(s);
        break;
    case Kind::cut:
    case Kind::mend:
    case Kind::snap:
    case Kind::hold_up:
    case Kind::let_go:
        if (other != nullptr) {
            link_step(*other, s.kind);
        }
        break;
    case Kind::time:
        (void)until([] { return false; }, seconds(s.a % 3 == 0 ? 1000 : 1 + s.a % 40));
        break;
    case Kind::copy_store:
        copy_store(s.b == 1);
        break;
    case Kind::old_store:
        old_store(s);
        break;
    case Kind::copy_image:
        if (const Bytes image = files_.content(fmt::format("{}.img", n)); !image.empty()) {
            images_[n] = {.content = image, .in_flight = i != nullptr && i->operations > 0};
            if (i != nullptr) {
                i->copied = i->copied || i->operations > 0;
            }
        }
        break;
    case Kind::old_image:
        old_image(n);
        break;
    case Kind::new_tpm:
        new_tpm();
        break;
    case Kind::hand_over:
        if (i != nullptr && i->up) {
            hand_over(*i);
        }
        break;
    case Kind::recovery_add:
        recovery_add();
        break;
    case Kind::recovery_remove:
        recovery_remove(s.a);
        break;
    case Kind::recovery_look:
        recovery_look();
        break;
    case Kind::fill:
        if (manager_ && manager_->serving && config_.store_kib == 256) {
            run_in<void>(manager_->process, manager_->operations, fill(*manager_, s.b % 4, 50 + s.c % 1000),
                         [](const Result<void>&, bool) {});
        }
        break;
    case Kind::platform:
        (void)end_manager(false);
        platform_b_ = s.a % 2 == 1;
        tpm_.pcrs[{hwtpm::HashAlg::sha256, 4}] = Bytes(32, platform_b_ ? std::byte{0xb0} : std::byte{0xa0});
        break;
    case Kind::pull:
        pull(s.a % 2 == 0 ? "manager.img" : fmt::format("{}.img", n), s.a % 2 == 0 ? nullptr : i);
        break;
    case Kind::grow:
        grow(std::uint64_t{256 + s.c % 1024} * 1024);
        break;
    case Kind::count_:
        break;
    }
}

/// The operator keeps the image of the instance that ran last.
void World::put_newest_image(std::size_t n) {
    if (model_.vtpms[n].twinned && find(n, true) == nullptr) {
        const Bytes own = files_.content(fmt::format("{}.img", n));
        files_.put(fmt::format("{}.img", n), files_.content(fmt::format("{}-twin.img", n)));
        files_.put(fmt::format("{}-other.img", n), own);
        model_.vtpms[n].twinned = false;
    } else if (find(n, true) == nullptr && files_.find(fmt::format("{}-twin.img", n)) != nullptr) {
        files_.put(fmt::format("{}-other.img", n), files_.content(fmt::format("{}-twin.img", n)));
    }
}

bool World::start_and_count(std::size_t n) {
    start_instance(n, false, false);
    Inst& i = *instances_.back();
    if (!until([&i] { return i.operations == 0; }, seconds(120))) {
        throw Violation(fmt::format("vTPM {} does not come up in the end", n));
    }
    const bool up = i.up;
    if (up) {
        guest(i, true);
        guest(i, false);
        (void)until([&i] { return i.operations == 0; }, seconds(120));
    }
    end_instance(i, false);
    return up;
}

void World::serve(const std::string& recovery_file) {
    const bool calm = !faults_armed();
    const std::uint64_t before = disturbances_;
    start_manager(recovery_file, [this, calm, before] {
        if (manager_->refused && calm && before == disturbances_) {
            broken("the store does not open: " + manager_->refused->message);
        }
    });
}

void World::arm(const Step& s) {
    disturb();
    if (s.kind == Kind::tpm_fails) {
        tpm_fault_in_ = s.b;
        tpm_fault_left_ = 1 + s.c % 3;
        tpm_fault_after_ = s.c % 2 == 1;
    } else {
        const auto file = files_.find(s.a % 2 == 0 ? "manager.img" : fmt::format("{}.img", s.a / 2 % uuids_.size()));
        if (file == nullptr || power_plan_) {
            return;
        }
        test::FaultDisk& disk = *file->disk;
        const std::uint64_t at = disk.operations() + s.b % 8 * (1 + s.c % 3);
        if (s.kind == Kind::disk_dies) {
            disk.plan.die_at = at;
            power_plan_ = {loss_of(s.c), s.c / 4};
        } else {
            disk.plan.fail_at = at;
            disk.plan.fail_until = at + 1 + s.c / 6 % 4;
            disk.plan.error = s.c % 2 == 0 ? Errc::io : Errc::no_space;
            disk.plan.fail_prefix = s.c / 2 % 3 == 0 ? s.c % 2000 : 0;
            disk.plan.drop_seed = s.c;
        }
    }
    if (manager_) {
        manager_->trouble = true;
    }
    for (auto& i : instances_) {
        i->trouble = true;
    }
}

void World::link_step(Inst& i, Kind kind) {
    disturb();
    switch (kind) {
    case Kind::cut:
        i.cut_off = true;
        [[fallthrough]];
    case Kind::snap:
        i.cut();
        break;
    case Kind::mend:
        i.cut_off = false;
        break;
    case Kind::hold_up:
    case Kind::let_go:
        i.held_up = kind == Kind::hold_up;
        i.hold_up(i.held_up);
        break;
    default:
        break;
    }
}

// --- files that are taken from under a process ---

/// What is at the path afterwards is what was there; whoever has the file open writes to one that has no name any more.
void World::pull(const std::string& path, const Inst* by) {
    const Files::File* file = files_.find(path);
    const bool open = by != nullptr ? by->up : manager_ && manager_->serving;
    if (file == nullptr || !open || faults_armed()) {
        return;
    }
    disturb();
    if (by == nullptr) {
        manager_->trouble = true;
    }
    for (auto& i : instances_) {
        i->trouble = i->trouble || by == nullptr || i.get() == by;
    }
    files_.put(path, file->disk->content());
    pulled_.insert(path);
}

/// The operator does what the log says, once the process has ended.
void World::put_rescued(const std::string& path) {
    const std::string copy = path + ".rescued";
    if (pulled_.erase(path) != 0 && files_.find(copy) != nullptr) {
        say(path + ": its rescued copy is put in its place");
        files_.put(path, files_.content(copy));
    }
    files_.all().erase(copy);
}

void World::grow(std::uint64_t size) {
    if (!manager_ || !manager_->serving) {
        return;
    }
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    run_in<void>(manager_->process, manager_->operations, manager_->vault->grow(size),
                 [this, calm, before](const Result<void>& r, bool dead) {
                     if (!r) {
                         say("growing: " + r.error().message);
                     }
                     if (!r && !dead && calm && before == disturbances_ && r.error().code != Errc::usage) {
                         broken("the store does not grow, and nothing was wrong: " + r.error().message);
                     }
                 });
}

// --- old copies ---

void World::copy_store(bool by_manager) {
    if (!store_made_) {
        return;
    }
    StoreCopy copy{.content = {}, .model = {}, .steps = 0, .level = false, .covered = false, .tpm = tpm_number_};
    if (by_manager) {
        if (!manager_ || !manager_->serving) {
            return;
        }
        copy.model = model_; // what is acknowledged while the backup is taken need not be in it
        auto into = std::make_shared<Bytes>();
        auto ended = std::make_shared<std::optional<bool>>();
        run_in<void>(manager_->process, manager_->operations, read_backup(*manager_->vault, into),
                     [ended](const Result<void>& r, bool) { *ended = r.has_value(); });
        (void)until([&] { return ended->has_value() && manager_->operations == 0; }, seconds(600));
        if (!*ended || !**ended) {
            return;
        }
        copy.content = std::move(*into);
    } else {
        idle();
        copy.content = files_.content("manager.img");
        copy.model = model_;
    }
    // What was in flight is not known to be in it: such a copy is good for nothing but to be refused.
    const bool quiet = (!manager_ || (manager_->operations == 0 && !manager_->opening)) &&
                       std::ranges::all_of(instances_, [](const auto& i) { return i->operations == 0; });
    if (!quiet || by_manager) {
        copy.level = false;
    } else {
        copy.level = manager_ ? level(*manager_) : left_level_;
    }
    copy.steps = counter_steps_;
    copy.covered = freshness_began_ && config_.freshness != 0;
    copy_ = std::move(copy);
}

void World::old_store(const Step& s) {
    if (!copy_ || !store_made_ || faults_armed()) {
        return;
    }
    const std::string recovery = s.b == 1 ? recovery_file_of(copy_->model, s.c / 2) : "";
    while (!instances_.empty()) {
        end_instance(*instances_.front(), true);
    }
    (void)end_manager(s.c % 2 == 0);
    const Bytes newest = files_.content("manager.img");
    files_.put("manager.img", copy_->content);
    const std::uint64_t since = counter_steps_ - copy_->steps;
    const bool must_refuse = copy_->tpm == tpm_number_ && copy_->covered && since >= (copy_->level ? 1U : 2U);
    say(fmt::format("an old copy of the store, {} steps old{}", since,
                    !recovery.empty() ? ", with the recovery file" : ""));
    old_copy_opens_ = true;
    start_manager(recovery);
    const bool ended =
        until([this] { return manager_->operations == 0 && (manager_->serving || manager_->refused); }, seconds(600));
    old_copy_opens_ = false;
    if (!ended) {
        throw Violation("a manager on an old copy of the store neither starts nor ends");
    }
    if (manager_->serving) {
        if (must_refuse) {
            throw Violation(fmt::format("an old copy of the store was taken, {} steps of the counter old{}", since,
                                        !recovery.empty() ? ", with the recovery file" : ""));
        }
        // As freshness allows, or nobody can know: all that came after it is lost.
        for (std::size_t n = 0; n < uuids_.size(); ++n) {
            VtpmModel old = copy_->model.vtpms[n];
            old.maybe.insert(model_.vtpms[n].maybe.begin(), model_.vtpms[n].maybe.end());
            for (const auto& [tpm, counted] : model_.vtpms[n].counted) {
                old.counted[tpm].most = std::max(old.counted[tpm].most, counted.most);
            }
            old.lossy = true;
            old.presence = Possible<Presence>(observed(uuids_[n]));
            model_.vtpms[n] = old;
            if (const auto* known = manager_->vault->registry().find(uuids_[n])) {
                model_.vtpms[n].name = Possible<std::string>(std::string(manager_->vault->registry().name(uuids_[n])));
                for (std::uint32_t g = 0; g <= group_uuids_.size(); ++g) {
                    if (group_id(g) == known->group) {
                        model_.vtpms[n].group = Possible<std::uint32_t>(g);
                    }
                }
            }
        }
        for (std::size_t n = 0; n < group_uuids_.size(); ++n) {
            GroupModel g;
            if (const auto id = group_id(static_cast<std::uint32_t>(n) + 1)) {
                g.presence.set(Presence::there);
                g.lost = model_.groups[n].lost;
                g.sequence.set(manager_->groups->show(*id)->sequence);
            }
            model_.groups[n] = g;
        }
        model_.fill.clear();
        for (RecoveryModel& k : model_.recovery) {
            k.presence = Possible<Presence>(listed(k));
        }
        copy_.reset();
        return;
    }
    (void)end_manager(true);
    files_.put("manager.img", newest);
    serve("");
    (void)until([this] { return manager_->operations == 0; }, seconds(600));
}

void World::old_image(std::size_t n) {
    const auto kept = images_.find(n);
    if (kept == images_.end() || faults_armed()) {
        return;
    }
    for (const bool twin : {false, true}) {
        if (Inst* i = find(n, twin)) {
            end_instance(*i, false);
        }
    }
    const std::string path = fmt::format("{}.img", n);
    const Bytes newest = files_.content(path);
    files_.put(path, kept->second.content);
    disturb();
    for (auto& [tpm, counted] : model_.vtpms[n].counted) {
        counted.most += kept->second.in_flight ? 1 : 0;
    }
    const bool lossy = std::exchange(model_.vtpms[n].lossy, true); // it need not start; if it does, booted() judges
    start_instance(n, false, false);
    Inst& i = *instances_.back();
    (void)until([&i] { return i.operations == 0; }, seconds(120));
    model_.vtpms[n].lossy = lossy;
    if (i.operations != 0 || !i.up) {
        end_instance(i, true);
        files_.put(path, newest);
    }
}

void World::new_tpm() {
    if (!store_made_ || faults_armed()) {
        return;
    }
    (void)end_manager(false);
    const std::string recovery = recovery_file_of(model_, 0);
    if (recovery.empty()) { // that would be the end of the store
        return;
    }
    fakes::FakeTpm another;
    another.identity = Bytes(3, static_cast<std::byte>(++tpm_number_ + 100));
    another.before = tpm_.before;
    another.after = tpm_.after;
    another.high_water = 40 + tpm_number_ * 100;
    another.pcrs = tpm_.pcrs;
    tpm_ = std::move(another);
    for (GroupModel& g : model_.groups) {
        g.lost = g.lost || g.presence.allows(Presence::there);
    }
    say("another TPM");
    for (const RecoveryModel& k : model_.recovery) {
        if (!k.surely(Presence::absent)) {
            continue;
        }
        start_manager(k.path);
        (void)until([this] { return manager_->operations == 0; }, seconds(600));
        if (manager_->serving) {
            throw Violation("the file of recovery key " + k.id + ", which was removed, opens the store");
        }
        (void)end_manager(true);
        break;
    }
    serve(recovery);
    (void)until([this] { return manager_->operations == 0; }, seconds(600));
}

// --- the end ---

void World::audit() {
    const auto waited = [this] {
        if (!until([this] { return !manager_ || manager_->operations == 0; }, seconds(7200))) {
            throw Violation("the manager does not come to rest in the end");
        }
    };
    power_plan_.reset();
    tpm_fault_left_ = 0;
    for (auto& [path, file] : files_.all()) {
        file.disk->plan = {};
    }
    for (const Loss loss : {Loss::none, Loss::all}) {
        power_cut(loss, 0);
        serve("");
        waited();
        check();
        reap();
        if (!manager_ || !manager_->serving) {
            throw Violation("the manager does not serve in the end");
        }
        for (std::size_t n = 0; n < uuids_.size(); ++n) {
            VtpmModel& v = model_.vtpms[n];
            if (v.presence.value() == Presence::absent) {
                continue;
            }
            const bool unclear = v.unclear;
            put_newest_image(n);
            if (!start_and_count(n) && unclear) {
                // Of two instances either may have had the last word, where nobody was told.
                v.unclear = false; // booted() has put that in its place
                (void)start_and_count(n);
            }
            check();
        }
        auto looked = std::make_shared<bool>(false);
        run_in<void>(manager_->process, manager_->operations, look_at_fill(),
                     [looked](const Result<void>&, bool) { *looked = true; });
        waited();
        check();
    }
    (void)end_manager(false);
    serve("");
    waited();
    watch();
    check();
    (void)end_manager(false);
    check();
    recovery_look();
    check();
}

Task<Result<void>> World::look_at_fill() {
    for (auto& [uuid, f] : model_.fill) {
        if (f.presence.value() != Presence::there) {
            continue;
        }
        auto key = co_await manager_->vault->load_key(uuid);
        const unsigned mark = key && *key ? std::to_integer<unsigned>((*key)->data()[0]) : 0;
        if (!key || !f.mark.allows(mark)) {
            broken(fmt::format("vTPM {}: its key is number {}, not {}: {}", uuid, mark, f.mark.value(),
                               key ? "" : key.error().message));
        }
        f.mark.seen(mark);
    }
    co_return Result<void>{};
}

} // namespace vtpmd::sim
