#include "manager/vault/vault.hpp"

#include "manager/vault/key_wrap.hpp"

namespace vtpmd::manager {

namespace {
constexpr std::uint64_t tombstone_share = 16; // of the room in the store, before the oldest retire
} // namespace

Vault::Vault(Options options, Parts parts)
    : options_(std::move(options))
    , parts_(std::move(parts))
    , forgetting_(parts_.executor)
    , superblock_lock_(parts_.executor) {}

Result<void> Vault::apply(ByteView record) {
    auto decoded = decode(record);
    if (!decoded) {
        return decoded.error();
    }
    return registry_.apply(*decoded);
}

void Vault::snapshot(const std::function<void(ByteView)>& emit) { emit_snapshot(registry_, emit); }

void Vault::snapshot_after(std::span<const ByteView> records, const std::function<void(ByteView)>& emit) {
    Registry next = registry_;
    for (const ByteView record : records) {
        if (auto decoded = decode(record)) {
            (void)next.apply(*decoded); // they were checked
        }
    }
    emit_snapshot(next, emit);
}

void Vault::emit_snapshot(const Registry& of, const std::function<void(ByteView)>& emit) {
    retiring_ = of.retirable({.hardware = freshness_ ? freshness_->reached() : 0,
                              .budget = retire_all_ ? 0 : image_->counters().room / tombstone_share});
    of.snapshot([&emit](const Record& r) { emit(encode(r)); }, retiring_);
}

void Vault::checkpointed() {
    registry_.retire(retiring_);
    retiring_.clear();
    retire_all_ = false;
}

bool Vault::checkpoint_makes_room() {
    retire_all_ = !registry_.retirable({.hardware = freshness_ ? freshness_->reached() : 0, .budget = 0}).empty();
    return retire_all_;
}

void Vault::begin_batch(std::uint64_t room) {
    draft_.emplace(&registry_);
    admission_ = {.room = room};
}

Result<void> Vault::check(std::span<const Bytes> records) {
    Draft later(&*draft_);
    auto kind = Admission::Kind::changes;
    for (const Bytes& record : records) {
        auto decoded = decode(record);
        if (!decoded) {
            return decoded.error();
        }
        if (auto may = later.add(*decoded); !may) {
            return may;
        }
        if (std::holds_alternative<VtpmRecord>(*decoded) || std::holds_alternative<GroupRecord>(*decoded)) {
            kind = Admission::Kind::registers;
        }
    }
    if (!admission_.admits(draft_->snapshot_size(), later.snapshot_size(), kind)) {
        return make_error(Errc::no_space,
                          "{}: full: its {} vTPMs can come to {} bytes of {}. Make the store larger (vtpmctl store "
                          "grow SIZE), or delete vTPMs that are not needed",
                          parts_.place.path(), registry_.vtpm_count(), draft_->snapshot_size().most,
                          admission_.limit());
    }
    draft_->absorb(std::move(later));
    return {};
}

bool Vault::cannot_follow(ByteView record) {
    auto decoded = decode(record);
    return decoded && !manager::check(registry_, *decoded, Occasion::replay);
}

void Vault::on_stopped(const Error& why) {
    if (when_stopped_) {
        when_stopped_(why);
    }
}

Vault::Fill Vault::fill() const {
    const SnapshotSize size = registry_.snapshot_size();
    return {.used = size.now, .reserved = size.most, .limit = Admission{.room = image_->counters().room}.limit()};
}

/// Says it once, and again only after it was otherwise.
void Vault::watch_fill() {
    const Fill now = fill();
    if (now.nearly_full() && !told_nearly_full_) {
        parts_.log.warning("{}: what its {} vTPMs and {} groups can come to takes {} bytes, over 80 % of the {} that "
                           "are let in: make the store larger (vtpmctl store grow SIZE) before no vTPM can be added",
                           parts_.place.path(), registry_.vtpm_count(), registry_.groups().size(), now.reserved,
                           now.limit);
    }
    told_nearly_full_ = now.nearly_full() || (told_nearly_full_ && now.reserved > now.limit / 4 * 3);
}

Task<Result<void>> Vault::grow(std::uint64_t size) {
    if (auto ours = co_await take_over(); !ours) {
        co_return ours;
    }
    auto grown = co_await image_->grow(size);
    watch_fill();
    co_return grown;
}

Task<> Vault::gather(Task<Result<void>> everyone) {
    if (freshness_) {
        co_await freshness_->gather(std::move(everyone));
    }
}

std::vector<Bytes> Vault::prologue(std::size_t /*count*/) {
    return freshness_ ? freshness_->prologue() : std::vector<Bytes>{};
}

Task<Result<void>> Vault::before_acknowledge() {
    if (!freshness_) { // the store is being made
        co_return Result<void>{};
    }
    watch_fill();
    co_return co_await freshness_->before_acknowledge();
}

Task<Result<void>> Vault::commit(Record record) {
    std::vector<Bytes> records;
    records.push_back(encode(record));
    return commit_all(std::move(records));
}

Task<Result<void>> Vault::commit_all(std::vector<Bytes> records) {
    std::function<Result<void>()> nothing;
    return commit_all(std::move(records), std::move(nothing));
}

Task<Result<void>> Vault::commit_all(std::vector<Bytes> records, std::function<Result<void>()> still) {
    if (freshness_->fatal()) {
        co_return *freshness_->fatal();
    }
    if (auto ours = co_await take_over(); !ours) {
        co_return ours;
    }
    freshness_->committing();
    auto done = co_await image_->append_all(std::move(records), std::move(still));
    if (!done && done.error().code != Errc::unavailable) {
        // A plain no is about this record. The same may have been offered before, with an outcome that is still unknown; a
        // vTPM that took the no for both would write over the slot that a restart may yet ask for.
        if (auto settled = co_await image_->settle(); !settled) {
            Error unknown = done.error();
            unknown.code = Errc::unavailable;
            co_return unknown;
        }
    }
    co_return done;
}

Task<Result<void>> Vault::register_vtpm(Uuid uuid, TpmVersion version, GroupId group, std::string name,
                                        std::uint32_t owner) {
    if (auto fits = name.empty() ? Result<void>{} : check_vtpm_name(name); !fits) {
        co_return fits;
    }
    const Record vtpm = VtpmRecord{.uuid = uuid, .group = group, .version = version, .created = parts_.unix_time()};
    if (auto may = manager::check(registry_, vtpm, Occasion::write); !may) {
        co_return may;
    }
    if (!group_open(group)) {
        co_return closed_error(group);
    }
    std::vector<Bytes> records;
    records.push_back(encode(vtpm));
    if (!name.empty()) {
        records.push_back(encode(NameRecord{.uuid = uuid, .name = std::move(name)}));
    }
    if (owner != 0) {
        records.push_back(encode(OwnerRecord{.uuid = uuid, .user = owner}));
    }
    co_return co_await commit_all(std::move(records));
}

Task<Result<void>> Vault::register_numbered(Uuid uuid, TpmVersion version, std::uint32_t number) {
    if (number == 0) {
        co_return make_error(Errc::usage, "vTPM {}: 0 is no number", uuid);
    }
    std::vector<Bytes> records;
    records.push_back(encode(VtpmRecord{.uuid = uuid, .version = version, .created = parts_.unix_time()}));
    records.push_back(encode(NumberRecord{.uuid = uuid, .number = number}));
    co_return co_await commit_all(std::move(records));
}

Task<Result<void>> Vault::rename(Uuid uuid, std::string name) {
    if (auto fits = name.empty() ? Result<void>{} : check_vtpm_name(name); !fits) {
        co_return fits;
    }
    Record record = NameRecord{.uuid = uuid, .name = std::move(name)};
    co_return co_await commit(std::move(record));
}

Task<Result<void>> Vault::give_to(Uuid uuid, std::uint32_t owner) {
    Record record = OwnerRecord{.uuid = uuid, .user = owner};
    co_return co_await commit(std::move(record));
}

Task<Result<void>> Vault::move_vtpm(Uuid uuid, GroupId group) {
    Record record = MovedRecord{.uuid = uuid, .group = group};
    if (auto may = manager::check(registry_, record, Occasion::write); !may) {
        co_return may;
    }
    if (!group_open(group)) {
        co_return closed_error(group);
    }
    if (registry_.find(uuid)->group == group) {
        co_return Result<void>{};
    }
    co_return co_await commit(std::move(record));
}

Task<Result<void>> Vault::take_back(Uuid uuid, TpmVersion version) {
    const auto* gone = registry_.tombstone(uuid);
    if (gone == nullptr || gone->reason != TombstoneRecord::Reason::migrated) {
        co_return make_error(Errc::tombstone, "vTPM {} was not migrated away from here", uuid);
    }
    const std::optional<GroupId> group = gone->group.is_nil() ? GroupId{0} : registry_.find_group(gone->group);
    if (!group) {
        co_return make_error(Errc::not_found, "vTPM {} was in group {}, which was deleted: it does not come back here",
                             uuid, gone->group);
    }
    if (!group_open(*group)) {
        co_return closed_error(*group);
    }
    Record record =
        VtpmRecord{.uuid = uuid, .group = *group, .version = version, .created = parts_.unix_time(), .returned = true};
    co_return co_await commit(std::move(record));
}

Task<Result<void>> Vault::save_key(Uuid uuid, SecretBytes hash_key) {
    const auto* vtpm = registry_.find(uuid);
    if (vtpm == nullptr) {
        co_return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
    }
    const SecretBytes* group_key_held = group_key(vtpm->group);
    if (group_key_held == nullptr) {
        co_return closed_error(vtpm->group);
    }
    KeyPlace place{.uuid = uuid, .group = vtpm->group, .sequence = vtpm->sequence + 1};
    auto wrapped = wrap_hash_key(*group_key_held, place, hash_key.view());
    if (!wrapped) {
        co_return wrapped.error();
    }
    // The key is wrapped for this place, and opens in no other.
    std::function<Result<void>()> still = [this, place]() -> Result<void> {
        const auto now = draft_->vtpm_facts(place.uuid);
        if (now && (now->group != place.group || now->sequence + 1 != place.sequence)) {
            return make_error(Errc::busy, "vTPM {} was changed meanwhile; nothing of this save is kept", place.uuid);
        }
        return {};
    };
    std::vector<Bytes> records;
    records.push_back(encode(KeyRecord{.uuid = uuid, .sequence = place.sequence, .key = *wrapped}));
    co_return co_await commit_all(std::move(records), std::move(still));
}

Task<Result<std::optional<SecretBytes>>> Vault::load_key(Uuid uuid) {
    // "Not that key" is said only once it is certain that a restart says the same.
    if (auto settled = co_await image_->settle(); !settled) {
        Error e = settled.error();
        e.code = Errc::unavailable;
        co_return e;
    }
    const auto* vtpm = registry_.find(uuid);
    if (vtpm == nullptr) {
        co_return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
    }
    if (!vtpm->has_key()) {
        co_return std::optional<SecretBytes>();
    }
    const SecretBytes* group_key_held = group_key(vtpm->group);
    if (group_key_held == nullptr) {
        co_return closed_error(vtpm->group);
    }
    auto key =
        unwrap_hash_key(*group_key_held, {.uuid = uuid, .group = vtpm->group, .sequence = vtpm->sequence}, vtpm->key);
    if (!key) {
        co_return key.error();
    }
    co_return std::optional<SecretBytes>(std::move(*key));
}

Task<Result<void>> Vault::reset(Uuid uuid) {
    auto key = co_await load_key(uuid); // settled: what it names is what a restart would find
    if (!key) {
        co_return key.error();
    }
    const auto* vtpm = registry_.find(uuid);
    if (vtpm == nullptr) {
        co_return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
    }
    if (!group_open(vtpm->group)) {
        co_return closed_error(vtpm->group);
    }
    if (vtpm->returned) {
        co_return make_error(Errc::usage,
                             "vTPM {} waits for its state from the host that it was migrated to (--incoming): there is "
                             "nothing here to reset",
                             uuid);
    }
    if (vtpm->sequence == 0) {
        co_return Result<void>{};
    }
    ResetRecord record{.uuid = uuid, .sequence = vtpm->sequence + 1, .when = parts_.unix_time(), .given_up = {}};
    record.given_up = *key ? to_bytes((*key)->view().subspan(proto::hash_key_part)) : registry_.reset(uuid)->given_up;
    const std::uint64_t sequence = record.sequence;
    std::vector<Bytes> records{encode(Record(std::move(record)))};
    auto done = co_await freshness_->step(std::move(records));
    const Registry::Reset* made = registry_.reset(uuid);
    if (made == nullptr || made->sequence < sequence) {
        co_return done;
    }
    if (auto gone = co_await forget_keys(); !gone) {
        parts_.log.warning("vTPM {}: was reset; its old key is in {} until the next checkpoint: {}", uuid,
                           parts_.place.path(), gone.error().message);
    }
    if (!done) {
        co_return in_context(done.error(),
                             fmt::format("vTPM {} was reset, but an older copy of the store could still bring its "
                                         "state back until the freshness counter moves",
                                         uuid));
    }
    co_return done;
}

/// The keys that changes before this call took away lie in the journal's half, whose own key goes with its header. Calls that
/// come while one is at it share the next.
Task<Result<void>> Vault::forget_keys() {
    const std::uint64_t mine = ++to_forget_;
    auto held = co_await forgetting_.acquire();
    if (!held) {
        co_return held.error();
    }
    if (forgotten_ >= mine) {
        co_return Result<void>{};
    }
    const std::uint64_t all = to_forget_;
    auto done = co_await image_->checkpoint();
    if (done) {
        forgotten_ = all;
    }
    co_return done;
}

Task<Result<void>> Vault::remove(Uuid uuid, TombstoneRecord::Reason reason) {
    TombstoneRecord gone{.uuid = uuid, .reason = reason, .when = parts_.unix_time()};
    bool had_key = false;
    if (const auto* vtpm = registry_.find(uuid)) {
        had_key = vtpm->sequence != 0;
        if (reason == TombstoneRecord::Reason::migrated && vtpm->group != 0) {
            gone.group = registry_.group(vtpm->group)->uuid;
        }
    }
    std::vector<Bytes> records{encode(gone)};
    auto done = co_await freshness_->step(std::move(records));
    const bool refused = !done && (done.error().code == Errc::not_found || done.error().code == Errc::tombstone);
    if (refused || registry_.find(uuid) != nullptr) {
        co_return done;
    }
    if (had_key) {
        if (auto forgotten = co_await forget_keys(); !forgotten) {
            parts_.log.warning("vTPM {}: is gone; its key is in {} until the next checkpoint: {}", uuid,
                               parts_.place.path(), forgotten.error().message);
        }
    }
    if (!done) {
        co_return in_context(done.error(),
                             fmt::format("vTPM {} is gone, but an older copy of the store could still bring it "
                                         "back until the freshness counter moves",
                                         uuid));
    }
    co_return done;
}

Task<Result<void>> Vault::create_group(GroupId id, Uuid uuid, Bytes detail) {
    std::vector<Bytes> records{encode(GroupRecord{.id = id, .uuid = uuid, .created = parts_.unix_time()}),
                               encode(GroupDetailRecord{.id = id, .detail = std::move(detail)})};
    co_return co_await freshness_->step(std::move(records));
}

Task<Result<void>> Vault::change_group(GroupId id, Bytes detail) {
    std::vector<Bytes> records{encode(GroupDetailRecord{.id = id, .detail = std::move(detail)})};
    co_return co_await freshness_->step(std::move(records));
}

Task<Result<void>> Vault::keep_certifier(GroupId id, Bytes detail) {
    Record record = CertifierRecord{.id = id, .detail = std::move(detail)};
    co_return co_await commit(std::move(record));
}

Task<Result<void>> Vault::remove_group(GroupId id) {
    std::vector<Bytes> records{encode(GroupGoneRecord{.id = id})};
    auto done = co_await freshness_->step(std::move(records));
    if (registry_.group(id) == nullptr) {
        group_keys_.erase(id);
        why_closed_.erase(id);
    }
    co_return done;
}

void Vault::open_group(GroupId id, SecretBytes key) {
    group_keys_.insert_or_assign(id, std::move(key));
    why_closed_.erase(id);
}

void Vault::close_group(GroupId id, std::string why) {
    group_keys_.erase(id);
    why_closed_.insert_or_assign(id, std::move(why));
}

const SecretBytes* Vault::group_key(GroupId id) const {
    if (id == 0) {
        return &keyring_.group0;
    }
    auto it = group_keys_.find(id);
    return it == group_keys_.end() ? nullptr : &it->second;
}

std::string Vault::why_closed(GroupId id) const {
    if (group_open(id)) {
        return {};
    }
    auto it = why_closed_.find(id);
    return it == why_closed_.end() ? fmt::format("group {} has not been opened", id) : it->second;
}

SecretBytes Vault::escrow_key(const Uuid& group) const {
    return derive_key(keyring_.group0, "vtpmd old group", group.bytes);
}

Error Vault::closed_error(GroupId id) const { return make_error(Errc::pcr_mismatch, "{}", why_closed(id)); }

Task<Result<void>> Vault::close() {
    if (untaken_) {
        co_await image_->close();
        co_return Result<void>{};
    }
    auto stepped = co_await freshness_->step();
    co_await image_->close();
    if (!stepped) {
        co_return in_context(stepped.error(), "the last freshness step");
    }
    co_return stepped;
}

} // namespace vtpmd::manager
