// What a step does, and what must be so afterwards.
#include "world.hpp"

#include "approver.hpp"

#include "instance/migration/handover.hpp"
#include "manager/vault/recovery_file.hpp"

namespace vtpmd::sim {

namespace {

using std::chrono::seconds;
using test::ApproverAgent;

const ApproverAgent& approver() {
    static const ApproverAgent agent;
    return agent;
}

std::string name_of(std::uint32_t number) { return number == 0 ? std::string() : fmt::format("name {}", number); }

} // namespace

World::Outcome World::outcome_of(bool success, Errc code, bool dead) {
    if (dead) {
        return Outcome::unknown;
    }
    if (success) {
        return Outcome::yes;
    }
    switch (code) {
    case Errc::unavailable:
    case Errc::rollback:
    case Errc::canceled:
    case Errc::timed_out:
        return Outcome::unknown;
    default:
        return Outcome::no;
    }
}

namespace {

template <typename T, typename Outcome>
void conclude(Possible<T>& of, const T& value, bool was_possible, Outcome outcome) {
    switch (outcome) {
    case Outcome::yes:
        of.acknowledged(value);
        break;
    case Outcome::no:
        of.refused(value, was_possible);
        break;
    case Outcome::unknown:
        of.unknown();
        break;
    }
}

/// What nobody asked for, of a store and a TPM that are well.
bool is_trouble(Errc code) {
    switch (code) {
    case Errc::corrupt:
    case Errc::version:
    case Errc::not_ours:
    case Errc::io:
    case Errc::closed:
    case Errc::rollback:
    case Errc::unavailable:
    case Errc::tpm:
        return true;
    default:
        return false;
    }
}

/// Of what was deleted, also the tombstone may be gone: then the UUID is free, and its images stay what nobody can read.
bool retired(const Possible<Presence>& presence, Presence seen) {
    return seen == Presence::absent && presence.allows(Presence::deleted);
}

Uuid fill_uuid(std::uint64_t n) {
    Uuid u;
    u.bytes[0] = std::byte{0x66};
    for (unsigned k = 0; k < 8; ++k) {
        u.bytes[15 - k] = static_cast<std::byte>(n >> (8 * k));
    }
    return u;
}

} // namespace

// --- what is seen ---

Presence World::observed(const Uuid& uuid) const {
    const manager::Registry& registry = manager_->vault->registry();
    if (registry.find(uuid) != nullptr) {
        return Presence::there;
    }
    const auto* gone = registry.tombstone(uuid);
    if (gone == nullptr) {
        return Presence::absent;
    }
    return gone->reason == manager::TombstoneRecord::Reason::deleted ? Presence::deleted : Presence::away;
}

std::optional<manager::GroupId> World::group_id(std::uint32_t group) const {
    if (group == 0) {
        return 0;
    }
    return manager_->vault->registry().find_group(group_uuids_[group - 1]);
}

/// As far as the model knows for certain; else true.
bool World::group_opens(std::uint32_t group) const {
    if (group == 0) {
        return true;
    }
    const GroupModel& g = model_.groups[group - 1];
    if (g.lost) {
        return false;
    }
    return !platform_b_ || !g.sequence.certain() || g.sequence.value() % 2 == 0;
}

/// A manager has opened the store: what it has read is what there is.
void World::check_restart() {
    if (old_copy_opens_) {
        return; // old_store() judges
    }
    const manager::Registry& registry = manager_->vault->registry();
    auto look = [&](Possible<Presence>& presence, Presence seen, const std::string& what) {
        if (!presence.allows(seen) && !retired(presence, seen)) {
            broken(fmt::format("{} is {} after a restart, it was {}", what, static_cast<int>(seen),
                               static_cast<int>(presence.value())));
        }
        presence.seen(seen);
    };
    for (std::size_t n = 0; n < uuids_.size(); ++n) {
        look(model_.vtpms[n].presence, observed(uuids_[n]), fmt::format("vTPM {}", n));
        model_.vtpms[n].gone_if(observed(uuids_[n]) != Presence::there);
    }
    for (std::size_t n = 0; n < group_uuids_.size(); ++n) {
        look(model_.groups[n].presence, registry.find_group(group_uuids_[n]) ? Presence::there : Presence::absent,
             fmt::format("group {}", n + 1));
        if (const auto id = registry.find_group(group_uuids_[n])) {
            const auto shown = manager_->groups->show(*id);
            if (shown && model_.groups[n].sequence.allows(shown->sequence)) {
                model_.groups[n].sequence.seen(shown->sequence);
            }
        }
    }
    for (auto& [uuid, f] : model_.fill) {
        const Presence seen = observed(uuid);
        if (!f.presence.allows(seen) && !retired(f.presence, seen)) {
            broken(fmt::format("fill vTPM {} is {} after a restart", uuid, static_cast<int>(seen)));
        }
        f.presence.seen(seen);
    }
    for (RecoveryModel& k : model_.recovery) {
        look(k.presence, listed(k), "recovery key " + k.id);
    }
    watch();
}

void World::watch() {
    if (!manager_ || !manager_->serving) {
        return;
    }
    if (manager_->fatal && !manager_->trouble) {
        broken("the manager cannot go on: " + manager_->fatal->message);
    }
    const manager::Registry& registry = manager_->vault->registry();
    for (std::size_t n = 0; n < uuids_.size(); ++n) {
        VtpmModel& v = model_.vtpms[n];
        const Presence seen = observed(uuids_[n]);
        if (!v.presence.all_outcomes_known()) {
            continue;
        }
        if (!v.presence.allows(seen) && !retired(v.presence, seen)) {
            broken(fmt::format("vTPM {} is {}, it was {}", n, static_cast<int>(seen),
                               static_cast<int>(v.presence.value())));
        }
        v.presence.seen(seen);
        v.gone_if(seen != Presence::there);
        if (seen != Presence::there) {
            continue;
        }
        const std::string name(registry.name(uuids_[n]));
        if (v.name.quiet() && !v.name.allows(name)) {
            broken(fmt::format("vTPM {} is called '{}', not '{}'", n, name, v.name.value()));
        }
        if (v.name.all_outcomes_known()) {
            v.name.seen(name);
        }
        const manager::GroupId id = registry.find(uuids_[n])->group;
        for (std::uint32_t g = 0; g <= group_uuids_.size(); ++g) {
            if (group_id(g) != id) {
                continue;
            }
            if (v.group.quiet() && !v.group.allows(g)) {
                broken(fmt::format("vTPM {} is in group {}, not {}", n, g, v.group.value()));
            }
            if (v.group.all_outcomes_known()) {
                v.group.seen(g);
            }
        }
    }
    for (RecoveryModel& k : model_.recovery) {
        if (k.presence.all_outcomes_known() && !k.presence.allows(listed(k))) {
            broken(fmt::format("recovery key {} is {}listed", k.id, listed(k) == Presence::there ? "" : "not "));
        }
    }
    for (std::size_t n = 0; n < group_uuids_.size(); ++n) {
        GroupModel& g = model_.groups[n];
        const auto id = registry.find_group(group_uuids_[n]);
        if (!g.presence.all_outcomes_known()) {
            continue;
        }
        if (!g.presence.allows(id ? Presence::there : Presence::absent)) {
            broken(fmt::format("group {} is {}there", n + 1, id ? "" : "not "));
        }
        g.presence.seen(id ? Presence::there : Presence::absent);
        if (!id) {
            continue;
        }
        auto shown = manager_->groups->show(*id);
        if (!shown) {
            broken(fmt::format("group {}: {}", n + 1, shown.error().message));
            continue;
        }
        if (g.sequence.quiet() && !g.sequence.allows(shown->sequence)) {
            broken(fmt::format("group {} has list {}, not {}", n + 1, shown->sequence, g.sequence.value()));
        }
        if (g.sequence.all_outcomes_known()) {
            g.sequence.seen(shown->sequence);
        }
    }
}

// --- guests ---

/// What runs of this vTPM is its past.
void World::forsake(std::size_t n) {
    for (auto& i : instances_) {
        i->stale = i->stale || i->vtpm == n;
    }
}

void World::guest(Inst& i, bool add) {
    VtpmModel& v = model_.vtpms[i.vtpm];
    const std::uint64_t tpm = i.engine.now().tpm;
    VtpmModel::Counted& counted = v.counted[tpm];
    const std::uint64_t floor = counted.acknowledged;
    const bool calm = healthy() && (settled() || !i.hurt) && !i.trouble && !i.stale && !i.cut_off && !i.held_up &&
                      !v.lossy && v.presence.certain() && v.presence.value() == Presence::there && v.group.certain() &&
                      group_opens(v.group.value());
    const std::uint64_t before = disturbances_;
    i.copied = i.copied && i.operations > 0;
    if (add) {
        ++counted.most;
        v.unclear = v.unclear || find(i.vtpm, !i.twin) != nullptr || i.stale;
    }
    auto ask = [](instance::Instance& on, std::uint32_t code) -> Task<Result<Bytes>> {
        co_return co_await on.execute(ModelEngine::command(code), 0);
    };
    run_in<Bytes>(i.process, i.operations, ask(*i.instance, add ? ModelEngine::add : ModelEngine::read),
                  [this, &i, &v, &counted, add, floor, tpm, calm, before](Result<Bytes> said, bool dead) {
                      if (dead || !said) {
                          return;
                      }
                      const auto answer = ModelEngine::answer(*said);
                      if (!answer) {
                          i.hurt = true;
                          // An error answer means that it has not happened, and never will.
                          if (add && !i.copied &&
                              tpm::peek_header(*said).code == tpm::not_durable_code(TpmVersion::tpm20)) {
                              --counted.most;
                          }
                          if (calm && before == disturbances_ && !i.stale && v.presence.value() == Presence::there) {
                              broken(fmt::format("vTPM {}: its guest's command failed, and nothing was wrong", i.vtpm));
                          }
                          return;
                      }
                      i.hurt = i.hurt && !add;
                      note(answer->value);
                      if (answer->tpm != tpm) {
                          broken(fmt::format("vTPM {}: TPM {} became {}", i.vtpm, tpm, answer->tpm));
                      }
                      if (i.stale && !add) {
                          return; // nobody has told it yet
                      }
                      if (answer->value < floor + (add ? 1 : 0)) {
                          broken(fmt::format("vTPM {}: a guest was told {}; before it was told {}", i.vtpm,
                                             answer->value, floor));
                      }
                      if (add && i.stale && answer->value <= counted.acknowledged) {
                          broken(fmt::format("vTPM {}: another instance has had {} acknowledged; this one's guest is "
                                             "told {}",
                                             i.vtpm, counted.acknowledged, answer->value));
                      }
                      if (answer->value > counted.most) {
                          broken(fmt::format("vTPM {}: a guest was told {}, it cannot be more than {}", i.vtpm,
                                             answer->value, counted.most));
                      }
                      if (v.tpm != tpm || v.given_up.contains(tpm)) {
                          if (add) {
                              broken(fmt::format("vTPM {}: a change of TPM {}, which was given up, was acknowledged",
                                                 i.vtpm, tpm));
                          }
                          return;
                      }
                      counted.acknowledged = std::max(counted.acknowledged, answer->value);
                      if (add) { // it is the one that has the vTPM now
                          forsake(i.vtpm);
                          i.stale = false;
                          v.twinned = i.twin;
                      }
                  });
}

// --- management ---

manager::ApprovalList World::list_of(std::uint32_t group, std::uint64_t sequence) const {
    manager::ApprovalList list{.group = group_uuids_[group],
                               .epoch = sequence,
                               .sequence = sequence,
                               .platforms = {},
                               .labels = {},
                               .signature = {}};
    const auto bank = hwtpm::HashAlg::sha256;
    for (std::uint64_t k = 0; k < (sequence % 2 == 0 ? 2 : 1); ++k) {
        const Bytes value(32, k == 0 ? std::byte{0xa0} : std::byte{0xb0});
        list.platforms.push_back(
            {.selection = {.bank = bank, .pcrs = {4}}, .values = {{bank, 4, value}}, .signature = {}});
    }
    return approver().sign(std::move(list));
}

void World::manage(const Step& s) {
    if (!manager_ || !manager_->serving) {
        return;
    }
    Manager& m = *manager_;
    const std::size_t n = s.a % uuids_.size();
    VtpmModel& v = model_.vtpms[n];
    const Uuid uuid = uuids_[n];
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    auto judge = [this, calm, before](const char* what, const Result<void>& r) {
        const bool bad = !r && (is_trouble(r.error().code));
        if (!r) {
            say(fmt::format("{}: {}", what, r.error().message));
        }
        if (bad && calm && before == disturbances_) {
            broken(fmt::format("{} fails, and nothing was wrong: {}", what, r.error().message));
        }
    };
    auto result = [](const Result<void>& r) { return r ? Errc{} : r.error().code; };
    switch (s.kind) {
    case Kind::create: {
        const std::uint32_t g = s.b % (static_cast<std::uint32_t>(group_uuids_.size()) + 1);
        const auto id = group_id(g);
        if (!id) {
            return;
        }
        const std::string name = name_of(s.c % 4);
        const bool was = v.presence.allows(Presence::there);
        const bool in_group = v.group.allows(g), was_called = v.name.allows(name);
        v.presence.begin(Presence::there);
        v.group.begin(g);
        v.name.begin(name);
        run_in<void>(m.process, m.operations, m.service->enrol(uuid, TpmVersion::tpm20, *id, name),
                     [=, &v](Result<void> r, bool dead) {
                         const Outcome o = outcome_of(r.has_value(), result(r), dead);
                         conclude(v.group, g, in_group, o);
                         conclude(v.name, name, was_called, o);
                         conclude(v.presence, Presence::there, was, o);
                         if (!dead) {
                             judge("create", r);
                         }
                     });
        break;
    }
    case Kind::remove: {
        const bool was = v.presence.allows(Presence::deleted);
        v.presence.begin(Presence::deleted);
        run_in<void>(m.process, m.operations, m.service->remove(uuid, manager::TombstoneRecord::Reason::deleted),
                     [=, this, &v](Result<void> r, bool dead) {
                         const Outcome o = outcome_of(r.has_value(), result(r), dead);
                         conclude(v.presence, Presence::deleted, was, o);
                         if (o == Outcome::yes && v.tpm) {
                             v.given_up.insert(*v.tpm);
                         }
                         if (o != Outcome::no) {
                             forsake(n);
                         }
                         if (!dead) {
                             judge("delete", r);
                             if (!r && r.error().code == Errc::no_space && calm && before == disturbances_) {
                                 broken("a full store does not delete: " + r.error().message);
                             }
                         }
                     });
        break;
    }
    case Kind::rename: {
        const std::string name = name_of(s.c % 4);
        const bool was = v.name.allows(name);
        v.name.begin(name);
        run_in<void>(m.process, m.operations, m.vault->rename(uuid, name), [=, &v](Result<void> r, bool dead) {
            conclude(v.name, name, was, outcome_of(r.has_value(), result(r), dead));
            if (!dead) {
                judge("rename", r);
            }
        });
        break;
    }
    case Kind::move: {
        const std::uint32_t g = s.b % (static_cast<std::uint32_t>(group_uuids_.size()) + 1);
        const auto id = group_id(g);
        if (!id) {
            return;
        }
        const bool was = v.group.allows(g);
        v.group.begin(g);
        run_in<void>(m.process, m.operations, m.service->move(uuid, *id), [=, &v](Result<void> r, bool dead) {
            conclude(v.group, g, was, outcome_of(r.has_value(), result(r), dead));
            if (!dead) {
                judge("move", r);
            }
        });
        break;
    }
    case Kind::reset: {
        run_in<void>(m.process, m.operations, m.service->reset(uuid), [=, this, &v, &m](Result<void> r, bool dead) {
            const Outcome o = outcome_of(r.has_value(), result(r), dead);
            // One that never saved anything stays as it is.
            if (o == Outcome::yes && m.vault->registry().reset(uuid) == nullptr) {
                return;
            }
            if (o == Outcome::yes) {
                if (v.tpm) {
                    v.given_up.insert(*v.tpm);
                }
                v.given_up.insert(v.maybe.begin(), v.maybe.end());
                v.tpm.reset();
                v.maybe.clear();
                v.may_be_reset = false;
            } else if (o == Outcome::unknown) {
                v.may_be_reset = true;
            }
            if (o != Outcome::no) {
                forsake(n);
            }
            if (!dead) {
                judge("reset", r);
            }
        });
        break;
    }
    default:
        group_step(s);
    }
}

void World::group_step(const Step& s) {
    Manager& m = *manager_;
    const std::uint32_t n = s.a % group_uuids_.size();
    GroupModel& g = model_.groups[n];
    const auto id = group_id(n + 1);
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    auto judge = [this, calm, before](const char* what, bool ok, const Error& e) {
        if (!ok) {
            say(fmt::format("{}: {}", what, e.message));
        }
        if (!ok && is_trouble(e.code) && calm && before == disturbances_) {
            broken(fmt::format("{} fails, and nothing was wrong: {}", what, e.message));
        }
    };
    if (s.kind == Kind::group_create) {
        manager::Groups::Create request;
        request.approver = approver().key.spki();
        request.approved = list_of(n, 1 + s.c % 2);
        const std::uint64_t sequence = request.approved.sequence;
        const bool was = g.presence.allows(Presence::there);
        g.presence.begin(Presence::there);
        run_in<manager::GroupId>(m.process, m.operations, m.groups->create(std::move(request)),
                                 [=, &g](Result<manager::GroupId> r, bool dead) {
                                     const Error e = r ? Error{} : r.error();
                                     const Outcome o = outcome_of(r.has_value(), e.code, dead);
                                     if (o == Outcome::yes) {
                                         g.sequence.set(sequence);
                                         g.ca.clear();
                                         g.lost = false;
                                     } else if (o == Outcome::unknown) {
                                         g.sequence.also(sequence);
                                         g.ca.clear();
                                         g.lost = g.lost && was; // one that is found now is the new one
                                     }
                                     conclude(g.presence, Presence::there, was, o);
                                     if (!dead) {
                                         judge("making a group", r.has_value(), e);
                                     }
                                 });
        return;
    }
    if (!id) {
        return;
    }
    if (s.kind == Kind::group_remove) {
        const bool was = g.presence.allows(Presence::absent);
        g.presence.begin(Presence::absent);
        run_in<void>(m.process, m.operations, m.groups->remove(*id), [=, &g](Result<void> r, bool dead) {
            const Error e = r ? Error{} : r.error();
            const Outcome o = outcome_of(r.has_value(), e.code, dead);
            conclude(g.presence, Presence::absent, was, o);
            if (o != Outcome::no) {
                g.ca.clear();
            }
            if (!dead) {
                judge("deleting a group", r.has_value(), e);
            }
        });
    } else if (s.kind == Kind::group_update) {
        const std::uint64_t sequence = g.sequence.value() + 1 + s.c % 2;
        const bool was = g.sequence.allows(sequence);
        g.sequence.begin(sequence);
        run_in<void>(
            m.process, m.operations, m.groups->update(*id, list_of(n, sequence)), [=, &g](Result<void> r, bool dead) {
                const Error e = r ? Error{} : r.error();
                // A list is not newer than one that came meanwhile.
                const bool old = !r && e.code == Errc::rollback && calm;
                conclude(g.sequence, sequence, was, old ? Outcome::no : outcome_of(r.has_value(), e.code, dead));
                if (!dead && !old) {
                    judge("updating a group", r.has_value(), e);
                }
            });
    } else {
        run_in<manager::Certifier::Ca>(m.process, m.operations, m.certifier->show(*id),
                                       [=, this, &g](Result<manager::Certifier::Ca> r, bool dead) {
                                           const Error e = r ? Error{} : r.error();
                                           if (dead) {
                                               return;
                                           }
                                           judge("a group's CA", r.has_value(), e);
                                           if (r && !g.ca.empty() && g.ca != r->chain.front()) {
                                               broken(fmt::format("group {} has another CA than before", n + 1));
                                           }
                                           if (r && g.presence.quiet() && g.presence.certain()) {
                                               g.ca = r->chain.front();
                                           }
                                       });
    }
}

// --- hand-over, recovery keys ---

/// The other host has the state and asks for the vTPM; nothing of it ever comes back.
void World::hand_over(Inst& i) {
    VtpmModel& v = model_.vtpms[i.vtpm];
    const std::size_t n = i.vtpm;
    const bool was = v.presence.allows(Presence::away);
    auto go = [](instance::Instance& on, Uuid uuid) -> Task<Result<void>> {
        std::array<store::Digest, 3> blobs{};
        for (std::uint32_t type = 1; type <= blobs.size(); ++type) {
            auto blob = co_await on.get_blob(type);
            if (!blob) {
                co_return blob.error();
            }
            blobs.at(type - 1) = store::sha256({*blob});
        }
        co_return co_await on.hand_over({uuid, instance::handover_token(blobs)});
    };
    v.presence.begin(Presence::away);
    i.handing_over = true;
    run_in<void>(i.process, i.operations, go(*i.instance, uuids_[n]),
                 [this, &i, &v, n, was](Result<void> r, bool dead) {
                     i.handing_over = false;
                     const Outcome o = outcome_of(r.has_value(), r ? Errc{} : r.error().code, dead);
                     conclude(v.presence, Presence::away, was, o);
                     if (!dead && !r) {
                         say(fmt::format("vTPM {} is not handed over: {}", n, r.error().message));
                     }
                     if (o == Outcome::yes) {
                         say(fmt::format("vTPM {} is another host's", n));
                         v.gone_if(true);
                     }
                     if (o != Outcome::no) {
                         forsake(n);
                     }
                 });
}

std::string World::recovery_file_of(const Model& model, std::size_t which) {
    std::vector<std::string> there;
    for (const RecoveryModel& k : model.recovery) {
        if (k.surely(Presence::there)) {
            there.push_back(k.path);
        }
    }
    return there.empty() ? std::string() : there[which % there.size()];
}

Presence World::listed(const RecoveryModel& key) const {
    const auto& keys = manager_->vault->recovery_keys();
    return std::ranges::any_of(keys, [&key](const auto& k) { return k.id == key.id; }) ? Presence::there
                                                                                       : Presence::absent;
}

void World::know_recovery_key(const std::string& path) {
    const auto key = manager::read_recovery_file(path);
    if (!key) {
        broken(path + ": " + key.error().message);
        return;
    }
    model_.recovery.push_back({.path = path, .id = manager::recovery_key_id(*key, manager_->vault->uuid())});
}

void World::recovery_add() {
    if (!manager_ || !manager_->serving) {
        return;
    }
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    run_in<SecretBytes>(manager_->process, manager_->operations, manager_->vault->add_recovery_key("of a step"),
                        [this, calm, before](Result<SecretBytes> text, bool dead) {
                            if (dead) {
                                return; // nobody has seen it
                            }
                            if (!text) {
                                say("recovery add: " + text.error().message);
                                if (calm && before == disturbances_ && text.error().code != Errc::usage) {
                                    broken("no recovery key can be added, and nothing was wrong: " +
                                           text.error().message);
                                }
                                return;
                            }
                            const std::string path = fmt::format("{}/recovery-{}", folder_, next_recovery_++);
                            manager::discard_recovery_file(path);
                            if (auto kept = manager::write_recovery_file(path, *text); !kept) {
                                broken(kept.error().message);
                                return;
                            }
                            know_recovery_key(path);
                        });
}

void World::recovery_remove(std::size_t which) {
    const auto there =
        std::ranges::count_if(model_.recovery, [](const RecoveryModel& k) { return k.surely(Presence::there); });
    if (!manager_ || !manager_->serving || there < 2) { // an operator keeps one
        return;
    }
    const std::size_t n = which % model_.recovery.size();
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    const bool was = model_.recovery[n].presence.allows(Presence::absent);
    model_.recovery[n].presence.begin(Presence::absent);
    run_in<void>(manager_->process, manager_->operations, manager_->vault->remove_recovery_key(model_.recovery[n].id),
                 [this, n, was, calm, before](Result<void> r, bool dead) {
                     if (!dead && !r && r.error().code == Errc::not_found) {
                         model_.recovery[n].presence.either();
                         return;
                     }
                     conclude(model_.recovery[n].presence, Presence::absent, was,
                              outcome_of(r.has_value(), r ? Errc{} : r.error().code, dead));
                     if (!dead && !r) {
                         say("recovery remove: " + r.error().message);
                         if (calm && before == disturbances_) {
                             broken("a recovery key is not removed, and nothing was wrong: " + r.error().message);
                         }
                     }
                 });
}

namespace {

Task<Result<void>> look_at(manager::Vault::Options options, manager::Vault::Parts parts,
                           std::shared_ptr<manager::Vault::Look> into) {
    auto seen = co_await manager::Vault::look(std::move(options), std::move(parts));
    if (!seen) {
        co_return seen.error();
    }
    *into = std::move(*seen);
    co_return Result<void>{};
}

} // namespace

void World::recovery_look() {
    if (manager_ || !store_made_ || faults_armed()) {
        return;
    }
    for (RecoveryModel& k : model_.recovery) {
        const Bytes content = files_.content("manager.img");
        manager_ = std::make_unique<Manager>(files_, tpm_, [this](const std::string& l) { say(l); });
        Manager& m = *manager_;
        m.process.clock.advance(now_ - m.process.clock.now());
        manager::Vault::Options options = vault_options();
        options.recovery_file = k.path;
        auto seen = std::make_shared<manager::Vault::Look>();
        auto failed = std::make_shared<std::optional<Error>>();
        run_in<void>(m.process, m.operations, look_at(std::move(options), vault_parts(m), seen),
                     [failed](Result<void> r, bool) {
                         if (!r) {
                             *failed = r.error();
                         }
                     });
        if (!until([&m] { return m.operations == 0; }, seconds(600))) {
            throw Violation("a look at the store never ends");
        }
        (void)end_manager(true);
        const Presence now = seen->recovery.starts_with("opens it") ? Presence::there : Presence::absent;
        say(fmt::format("recovery key {}: {}", k.id, *failed ? (*failed)->message : seen->recovery));
        if (!k.presence.allows(now)) {
            throw Violation(fmt::format("the file of recovery key {}, which is {}there: {}", k.id,
                                        now == Presence::there ? "not " : "",
                                        *failed ? (*failed)->message : seen->recovery));
        }
        if (!*failed) {
            k.presence.seen(now);
        }
        if (files_.content("manager.img") != content) {
            throw Violation("a look has changed the store");
        }
    }
}

/// Many small changes, to fill the store. Those that must always work are to.
Task<Result<void>> World::fill(Manager& m, unsigned what, unsigned count) {
    const bool calm = healthy();
    const std::uint64_t before = disturbances_;
    auto demand = [&](const char* name, const Result<void>& r) {
        if (!r && calm && !m.process.dead && before == disturbances_) {
            broken(fmt::format("a {} of a registered vTPM fails, and nothing was wrong: {}", name, r.error().message));
        }
    };
    auto code = [](const Result<void>& r) { return r ? Errc{} : r.error().code; };
    if (what == 0) {
        for (unsigned k = 0; k < count; ++k) {
            const Uuid uuid = fill_uuid(next_fill_++);
            FillModel& f = model_.fill[uuid];
            f.presence.begin(Presence::there);
            auto r = co_await m.service->enrol(uuid, TpmVersion::tpm20);
            conclude(f.presence, Presence::there, false, outcome_of(r.has_value(), code(r), m.process.dead));
            if (!r) {
                say("filling: " + r.error().message);
                break;
            }
        }
        co_return Result<void>{};
    }
    std::vector<Uuid> there;
    for (const auto& [uuid, f] : model_.fill) {
        if (there.size() < count && f.presence.certain() && f.presence.quiet() &&
            f.presence.value() == Presence::there) {
            there.push_back(uuid);
        }
    }
    for (const Uuid& uuid : there) {
        FillModel& f = model_.fill.at(uuid);
        if (m.process.dead) {
            break;
        }
        if (!f.presence.certain() || !f.presence.quiet() || !f.mark.quiet()) {
            continue; // another one is at it
        }
        if (what == 1) {
            const unsigned mark = f.mark.value() + 1;
            f.mark.begin(mark);
            auto r = co_await m.vault->save_key(uuid, SecretBytes(Bytes(64, static_cast<std::byte>(mark))));
            conclude(f.mark, mark, false, outcome_of(r.has_value(), code(r), m.process.dead));
            demand("save", r);
        } else if (what == 2) {
            auto r = co_await m.vault->rename(uuid, std::string(64, 'n'));
            if (!r && r.error().code != Errc::no_space) {
                demand("rename", r);
            }
        } else {
            f.presence.begin(Presence::deleted);
            auto r = co_await m.service->remove(uuid, manager::TombstoneRecord::Reason::deleted);
            conclude(f.presence, Presence::deleted, false, outcome_of(r.has_value(), code(r), m.process.dead));
            demand("deletion", r);
        }
    }
    co_return Result<void>{};
}

} // namespace vtpmd::sim
