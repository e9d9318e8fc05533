// The part of Control that is about groups: from their records to texts, and back.
#include "manager/management/control_service.hpp"

#include "tpm/pcr.hpp"
#include "util/text.hpp"

namespace vtpmd::manager {

namespace {

SealInfo platform_of(const hwtpm::Approval& approval) {
    SealInfo out{.selection = hwtpm::to_string(approval.selection), .pcrs = {}};
    for (const hwtpm::PcrValue& v : approval.values) {
        out.pcrs.push_back(
            {.bank = std::string(hwtpm::bank_name(v.bank)), .index = v.index, .value = to_hex(v.digest)});
    }
    return out;
}

GroupStatus status_of(const GroupInfo& g) {
    GroupStatus out{.uuid = g.uuid,
                    .number = g.id,
                    .created = g.created,
                    .vtpms = g.vtpms,
                    .open = g.open,
                    .why_closed = g.why_closed,
                    .approver = hwtpm::pem_of_spki(g.approver),
                    .epoch = g.epoch,
                    .sequence = g.sequence,
                    .platforms = {},
                    .labels = {},
                    .attestation_key = hwtpm::pem_of_spki(g.attestation_key),
                    .attestation_public = to_hex(g.attestation_public),
                    .identity_binding = to_hex(g.identity_binding),
                    .recovery_challenge = hwtpm::pem_of_spki(g.recovery_challenge)};
    for (const hwtpm::Approval& p : g.platforms) {
        out.platforms.push_back(platform_of(p));
    }
    for (const LabelHash& label : g.labels) {
        out.labels.push_back(to_hex(label));
    }
    return out;
}

/// A list that somebody sent: what is wrong with it is not the store's fault.
Result<ApprovalList> sent_list(ByteView bytes) {
    auto list = decode_approval_list(bytes);
    if (!list && list.error().code == Errc::corrupt) {
        return make_error(Errc::usage, "{}", list.error().message);
    }
    return list;
}

} // namespace

Result<GroupId> ControlService::find_group(const Uuid& uuid) const {
    if (auto id = parts_.groups.find(uuid)) {
        return *id;
    }
    return make_error(Errc::not_found, "there is no group {}", uuid);
}

std::vector<GroupStatus> ControlService::groups() const {
    std::vector<GroupStatus> out;
    for (const GroupInfo& g : parts_.groups.list()) {
        out.push_back(status_of(g));
    }
    return out;
}

Result<GroupStatus> ControlService::group(const Uuid& uuid) const {
    auto id = find_group(uuid);
    if (!id) {
        return id.error();
    }
    auto shown = parts_.groups.show(*id);
    if (!shown) {
        return shown.error();
    }
    return status_of(*shown);
}

Task<Result<GroupStatus>> ControlService::create_group(NewGroup request) {
    Groups::Create create;
    auto approver = hwtpm::spki_of_pem(request.approver);
    if (!approver) {
        co_return in_context(approver.error(), "the approver's key");
    }
    create.approver = std::move(*approver);
    auto list = sent_list(request.list);
    if (!list) {
        co_return list.error();
    }
    create.approved = std::move(*list);
    if (!request.recovery_key.empty()) {
        auto recovery = hwtpm::spki_of_pem(request.recovery_key);
        if (!recovery) {
            co_return in_context(recovery.error(), "the recovery key");
        }
        create.recovery_key = std::move(*recovery);
    }
    create.recovery_signature = std::move(request.recovery_signature);
    const Uuid uuid = create.approved.group;
    auto made = co_await parts_.groups.create(std::move(create));
    if (!made) {
        co_return made.error();
    }
    co_return group(uuid);
}

Task<Result<GroupStatus>> ControlService::update_group(Uuid uuid, Bytes list) {
    auto id = find_group(uuid);
    if (!id) {
        co_return id.error();
    }
    auto approved = sent_list(list);
    if (!approved) {
        co_return approved.error();
    }
    auto updated = co_await parts_.groups.update(*id, std::move(*approved));
    if (!updated) {
        co_return updated.error();
    }
    co_return group(uuid);
}

Task<Result<void>> ControlService::remove_group(Uuid uuid) {
    auto id = find_group(uuid);
    if (!id) {
        co_return id.error();
    }
    co_return co_await parts_.groups.remove(*id);
}

Task<Result<GroupStatus>> ControlService::recover_group(Uuid uuid, SecretBytes shared) {
    auto id = find_group(uuid);
    if (!id) {
        co_return id.error();
    }
    auto recovered = co_await parts_.groups.recover(*id, std::move(shared));
    if (!recovered) {
        co_return recovered.error();
    }
    co_return group(uuid);
}

namespace {
Result<CaInfo> ca_info(const Result<Certifier::Ca>& ca) {
    if (!ca) {
        return ca.error();
    }
    return CaInfo{.certificates = pem_of_certificates(ca->chain), .request = pem_of_request(ca->request)};
}
} // namespace

Task<Result<CaInfo>> ControlService::group_ca(Uuid uuid, NoCa if_none) {
    auto id = find_group(uuid);
    if (!id) {
        co_return id.error();
    }
    const Registry::Group* known = parts_.vault.registry().group(*id);
    if (if_none == NoCa::refuse && known != nullptr && known->certifier.empty()) {
        co_return make_error(Errc::not_found,
                             "group {} has no CA yet: it is made with its first vTPM, or when one asks who may manage",
                             uuid);
    }
    auto ca = co_await parts_.certifier.show(*id);
    co_return ca_info(ca);
}

Task<Result<CaInfo>> ControlService::set_group_ca(Uuid uuid, std::string certificates) {
    auto id = find_group(uuid);
    if (!id) {
        co_return id.error();
    }
    auto ca = co_await parts_.certifier.replace(*id, std::move(certificates));
    co_return ca_info(ca);
}

} // namespace vtpmd::manager
