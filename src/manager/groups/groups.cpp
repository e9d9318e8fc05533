#include "manager/groups/groups.hpp"

#include "manager/groups/vtpmmgr_group.hpp"
#include "manager/vault/crypto.hpp"

namespace vtpmd::manager {

namespace {

constexpr std::size_t group_limit = 4096;
constexpr std::size_t group_tpm_random = 32;

/// Whether an attempt to open says that the group is closed, rather than that nothing is known (the TPM did not answer).
bool means_closed(Errc code) {
    return code == Errc::pcr_mismatch || code == Errc::mismatch || code == Errc::permission || code == Errc::corrupt;
}

GroupInfo info_of(GroupId id, const Registry::Group& group) {
    GroupInfo out;
    out.id = id;
    out.uuid = group.uuid;
    out.created = group.created;
    out.vtpms = group.vtpms;
    return out;
}

void fill_in(GroupInfo& out, GroupDetail detail) {
    ApprovalList& list = detail.protection.approved;
    out.approver = std::move(detail.protection.approver);
    out.epoch = list.epoch;
    out.sequence = list.sequence;
    out.platforms = std::move(list.platforms);
    out.labels = std::move(list.labels);
    out.attestation_key = std::move(detail.attestation.key);
    out.attestation_public = std::move(detail.attestation.public_area);
    out.identity_binding = std::move(detail.attestation.binding);
    out.recovery_challenge = std::move(detail.recovery.challenge);
    out.old = std::move(detail.old);
}

} // namespace

Groups::Groups(Parts parts)
    : parts_(std::move(parts))
    , lock_(parts_.executor) {}

Result<GroupDetail> Groups::detail(GroupId id) const {
    const Registry::Group* group = parts_.vault.registry().group(id);
    if (group == nullptr) {
        return make_error(Errc::not_found, "there is no group {}", id);
    }
    if (group->detail.empty()) {
        return make_error(Errc::usage,
                          "group {} is the store's own: it has no approver and no attestation key; make a "
                          "group of your own for that",
                          id);
    }
    return decode_group_detail(group->detail);
}

Task<> Groups::open_all() {
    std::vector<GroupId> ids;
    for (const auto& [id, group] : parts_.vault.registry().groups()) {
        if (!group.detail.empty()) {
            ids.push_back(id);
        }
    }
    for (GroupId id : ids) {
        auto opened = co_await open(id);
        if (!opened) {
            parts_.log.warning("{}; its vTPMs do not start, the others do", opened.error().message);
        }
    }
}

Task<Result<void>> Groups::open(GroupId id) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    co_return co_await try_open(id);
}

Task<Result<void>> Groups::try_open(GroupId id) {
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    const Uuid uuid = known->protection.approved.group;
    SecretBytes escrow = parts_.vault.escrow_key(uuid);
    Task<Result<SecretBytes>> opening = known->old ? open_old_group(parts_.root, std::move(*known), std::move(escrow))
                                                   : open_group_key(parts_.root, std::move(known->protection));
    auto key = co_await std::move(opening);
    if (!key) {
        if (means_closed(key.error().code)) {
            parts_.vault.close_group(id, key.error().message);
        }
        co_return key.error();
    }
    if (!parts_.vault.group_open(id)) {
        parts_.log.info("group {} ({}) is open", id, uuid);
    }
    parts_.vault.open_group(id, std::move(*key));
    co_return Result<void>{};
}

std::vector<GroupInfo> Groups::list() const {
    std::vector<GroupInfo> out;
    for (const auto& [id, group] : parts_.vault.registry().groups()) {
        out.push_back(show(id).value());
    }
    return out;
}

Result<GroupInfo> Groups::show(GroupId id) const {
    const Registry::Group* group = parts_.vault.registry().group(id);
    if (group == nullptr) {
        return make_error(Errc::not_found, "there is no group {}", id);
    }
    GroupInfo out = info_of(id, *group);
    out.open = parts_.vault.group_open(id);
    out.why_closed = parts_.vault.why_closed(id);
    if (!group->detail.empty()) {
        auto known = decode_group_detail(group->detail);
        if (known) {
            fill_in(out, std::move(*known));
        } else {
            out.why_closed = known.error().message;
        }
    }
    return out;
}

std::optional<GroupId> Groups::find(const Uuid& uuid) const { return parts_.vault.registry().find_group(uuid); }

Result<void> Groups::admit(const Uuid& vtpm, const LabelHash& label) const {
    const Registry::Vtpm* known = parts_.vault.registry().find(vtpm);
    if (known == nullptr || known->group == 0) {
        return {};
    }
    if (!parts_.vault.group_open(known->group)) {
        return make_error(Errc::pcr_mismatch, "vTPM {}: {}", vtpm, parts_.vault.why_closed(known->group));
    }
    auto group = detail(known->group);
    if (!group) {
        return group.error();
    }
    if (!admits(group->protection.approved, label)) {
        return make_error(Errc::permission,
                          "vTPM {}: its label is none of those that group {}'s approver admits (list {}, {} labels)",
                          vtpm, known->group, group->protection.approved.sequence,
                          group->protection.approved.labels.size());
    }
    return {};
}

Task<Result<GroupId>> Groups::create(Create request) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    const Uuid uuid = request.approved.group;
    if (auto room = room_for(uuid); !room) {
        co_return room.error();
    }
    if (!request.recovery_key.empty()) {
        auto named = hwtpm::verify_sha256(request.approver, recovery_message(uuid, request.recovery_key),
                                          request.recovery_signature);
        if (!named) {
            co_return in_context(named.error(), "the approver's word for the recovery key");
        }
    }
    auto key = co_await new_key();
    if (!key) {
        co_return key.error();
    }
    GroupDetail made;
    if (!request.recovery_key.empty()) {
        auto recovery = keep_for_recovery(uuid, request.recovery_key, *key);
        if (!recovery) {
            co_return recovery.error();
        }
        made.recovery = std::move(*recovery);
    }
    auto protection = co_await protect_group_key(parts_.root, std::move(*key), std::move(request.approver),
                                                 std::move(request.approved));
    if (!protection) {
        co_return protection.error();
    }
    made.protection = std::move(*protection);
    co_return co_await add(std::move(made), std::move(request.chosen_id));
}

Result<void> Groups::room_for(const Uuid& uuid) const {
    const auto& groups = parts_.vault.registry().groups();
    if (uuid.is_nil() || find(uuid)) {
        return make_error(Errc::exists, "a group {} is there already, or that is no UUID", uuid);
    }
    if (groups.size() >= group_limit) {
        return make_error(Errc::too_large, "there are {} groups: no more than {}", groups.size(), group_limit);
    }
    return {};
}

Task<Result<SecretBytes>> Groups::new_key() {
    auto random = co_await parts_.root.random(group_tpm_random);
    if (!random) {
        co_return in_context(random.error(), "randomness from the TPM");
    }
    SecretBytes key = mix_key(*random);
    cleanse(*random);
    co_return key;
}

Task<Result<GroupId>> Groups::add(GroupDetail made, Bytes chosen_id) {
    hwtpm::AttestationKeyOptions options;
    options.chosen_id = std::move(chosen_id);
    auto attestation = co_await parts_.root.attestation_key_create(std::move(options));
    if (!attestation) {
        co_return in_context(attestation.error(), "the group's attestation key");
    }
    made.attestation = std::move(*attestation);

    const Uuid uuid = made.protection.approved.group;
    const GroupId id = parts_.vault.registry().next_group_id();
    auto stored = co_await parts_.vault.create_group(id, uuid, encode(made));
    if (!stored) {
        co_return stored.error();
    }
    parts_.log.info("group {} ({}) made", id, uuid);
    if (auto opened = co_await try_open(id); !opened) {
        parts_.log.warning("{}", opened.error().message);
    }
    co_return id;
}

Task<Result<GroupId>> Groups::create_old(Bytes modulus, Bytes chosen_id) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto approver = old_approver(modulus);
    if (!approver) {
        co_return approver.error();
    }
    const Uuid uuid = random_uuid();
    if (auto room = room_for(uuid); !room) {
        co_return room.error();
    }
    auto key = co_await new_key();
    if (!key) {
        co_return key.error();
    }
    GroupDetail made = new_old_group(uuid, std::move(*approver), parts_.vault.escrow_key(uuid), *key);
    co_return co_await add(std::move(made), std::move(chosen_id));
}

Task<Result<void>> Groups::update_old(GroupId id, proto::management::GroupUpdate update) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    std::optional<SecretBytes> key;
    if (const SecretBytes* open = parts_.vault.group_key(id)) {
        key.emplace(open->clone());
    }
    const std::uint64_t sequence = update.list.sequence;
    auto after = co_await update_old_group(parts_.root, std::move(*known), std::move(update), std::move(key));
    if (!after) {
        co_return after.error();
    }
    parts_.log.info("group {}: list {} taken", id, sequence);
    co_return co_await store(id, std::move(*after));
}

Task<Result<OldRegistration>> Groups::register_old(GroupId id, proto::management::GroupRegister request) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    const SecretBytes* open = parts_.vault.group_key(id);
    if (open == nullptr) {
        co_return make_error(Errc::pcr_mismatch, "{}", parts_.vault.why_closed(id));
    }
    const bool again = known->old && known->old->registration;
    SecretBytes escrow = parts_.vault.escrow_key(known->protection.approved.group);
    SecretBytes key = open->clone();
    auto after = co_await register_old_group(parts_.root, std::move(*known), std::move(request), std::move(escrow),
                                             std::move(key));
    if (!after) {
        co_return after.error();
    }
    const OldRegistration made = *after->old->registration;
    if (!again) {
        parts_.log.info("group {}: registered by its approver for recovery", id);
        auto stored = co_await store(id, std::move(*after));
        if (!stored) {
            co_return stored.error();
        }
    }
    co_return made;
}

Result<GroupDetail> Groups::lost(GroupId id) const {
    auto known = detail(id);
    if (!known) {
        return known.error();
    }
    if (!known->old || !known->old->registration) {
        return make_error(Errc::usage, "group {}: no approver has registered it (GROUP_REGISTER)", id);
    }
    if (parts_.vault.group_open(id)) {
        return make_error(Errc::exists, "group {} is open: there is nothing to recover", id);
    }
    return known;
}

Task<Result<proto::management::Number>> Groups::begin_recovery(GroupId id) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = lost(id);
    if (!known) {
        co_return known.error();
    }
    auto half = DhHalf::make();
    if (!half) {
        co_return half.error();
    }
    const auto value = half->value();
    exchanges_.insert_or_assign(known->protection.approved.group, std::move(*half));
    co_return value;
}

Task<Result<void>> Groups::recover_old(GroupId id, proto::management::GroupRecover2 answer) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = lost(id);
    if (!known) {
        co_return known.error();
    }
    const Uuid uuid = known->protection.approved.group;
    auto begun = exchanges_.extract(uuid); // one answer each
    if (begun.empty()) {
        co_return make_error(Errc::usage, "group {}: no recovery has begun, or it was answered (GROUP_RECOVER1)", id);
    }
    auto key = recovered_key(*known, begun.mapped(), answer);
    if (!key) {
        co_return key.error();
    }
    SecretBytes held = key->clone();
    SecretBytes escrow = parts_.vault.escrow_key(uuid);
    auto after = co_await protect_old_group(parts_.root, std::move(*known), std::move(escrow), std::move(*key));
    if (!after) {
        co_return after.error();
    }
    hwtpm::AttestationKeyOptions options;
    auto attestation = co_await parts_.root.attestation_key_create(std::move(options));
    if (!attestation) {
        co_return in_context(attestation.error(), "the group's new attestation key");
    }
    after->attestation = std::move(*attestation);
    parts_.log.info("group {} ({}): key recovered, sealed to {}", id, uuid, parts_.root.description());
    auto stored = co_await store(id, std::move(*after));
    if (stored && !parts_.vault.group_open(id)) {
        parts_.log.info("group {}: its approver gave the key to this platform, until the manager starts again", id);
        parts_.vault.open_group(id, std::move(held));
    }
    co_return stored;
}

Task<Result<void>> Groups::remove(GroupId id) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    if (const Registry::Group* group = parts_.vault.registry().group(id)) {
        exchanges_.erase(group->uuid);
    }
    auto removed = co_await parts_.vault.remove_group(id);
    if (removed) {
        parts_.log.info("group {} deleted", id);
    }
    co_return removed;
}

Task<Result<void>> Groups::store(GroupId id, GroupDetail detail) {
    auto stored = co_await parts_.vault.change_group(id, encode(detail));
    // Also after an error: what is there now, be it the old or the new, is what the group opens by.
    auto opened = co_await try_open(id);
    if (!opened) {
        parts_.log.warning("{}", opened.error().message);
    }
    co_return stored;
}

Task<Result<void>> Groups::update(GroupId id, ApprovalList approved) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    if (known->old) {
        co_return make_error(Errc::usage, "group {} is of the old form: its lists come by GROUP_UPDATE", id);
    }
    std::optional<SecretBytes> key;
    if (const SecretBytes* open = parts_.vault.group_key(id)) {
        key.emplace(open->clone());
    }
    GroupProtection before = std::move(known->protection);
    auto after = co_await update_group(parts_.root, std::move(before), std::move(approved), std::move(key));
    if (!after) {
        co_return after.error();
    }
    known->protection = std::move(*after);
    parts_.log.info("group {}: approval list {} (epoch {}) taken", id, known->protection.approved.sequence,
                    known->protection.approved.epoch);
    co_return co_await store(id, std::move(*known));
}

Task<Result<hwtpm::Quote>> Groups::quote(GroupId id, hwtpm::QuoteRequest request) {
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    hwtpm::AttestationKey key = std::move(known->attestation);
    co_return co_await parts_.root.quote(std::move(key), std::move(request));
}

Task<Result<SecretBytes>> Groups::activate(GroupId id, Bytes credential) {
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    hwtpm::AttestationKey key = std::move(known->attestation);
    co_return co_await parts_.root.activate_credential(std::move(key), std::move(credential));
}

Task<Result<void>> Groups::recover(GroupId id, SecretBytes shared) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto known = detail(id);
    if (!known) {
        co_return known.error();
    }
    const Uuid uuid = known->protection.approved.group;
    auto key = recover_key(uuid, known->recovery, shared);
    if (!key) {
        co_return key.error();
    }
    auto recovery = keep_for_recovery(uuid, known->recovery.key, *key);
    if (!recovery) {
        co_return recovery.error();
    }
    auto protection = co_await protect_group_key(parts_.root, std::move(*key), known->protection.approver,
                                                 known->protection.approved);
    if (!protection) {
        co_return protection.error();
    }
    hwtpm::AttestationKeyOptions options;
    auto attestation = co_await parts_.root.attestation_key_create(std::move(options));
    if (!attestation) {
        co_return in_context(attestation.error(), "the group's new attestation key");
    }
    GroupDetail after{
        .protection = std::move(*protection), .attestation = std::move(*attestation), .recovery = std::move(*recovery)};
    parts_.log.info("group {} ({}): key recovered, sealed to {}", id, uuid, parts_.root.description());
    co_return co_await store(id, std::move(after));
}

} // namespace vtpmd::manager
