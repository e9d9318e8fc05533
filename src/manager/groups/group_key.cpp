#include "manager/groups/group_key.hpp"

namespace vtpmd::manager {

namespace {

hwtpm::Approver approver_of(const Bytes& key, const ApprovalList& list) {
    return {.key = key, .reference = reference_of(list.group, list.epoch)};
}

Task<Result<std::vector<hwtpm::SealedSecret>>> seal_for_list(hwtpm::RootOfTrust& root, SecretBytes key, Bytes approver,
                                                             ApprovalList list) {
    std::vector<hwtpm::SealedSecret> out;
    if (root.version() == TpmVersion::tpm20) {
        hwtpm::Approver who = approver_of(approver, list);
        auto sealed = co_await root.seal_for(std::move(key), std::move(who));
        if (!sealed) {
            co_return sealed.error();
        }
        out.push_back(std::move(*sealed));
        co_return out;
    }
    if (list.platforms.empty()) {
        co_return make_error(Errc::usage,
                             "an approval list without platforms: on a TPM 1.2 nothing could open the group");
    }
    for (const hwtpm::Approval& p : list.platforms) {
        hwtpm::RootOfTrust::SealOptions options{
            .selection = p.selection, .allow_zero_pcrs = true, .values = p.values}; // the approver says what is good
        SecretBytes secret = key.clone();
        auto sealed = co_await root.seal(std::move(secret), std::move(options));
        if (!sealed) {
            co_return sealed.error();
        }
        out.push_back(std::move(*sealed));
    }
    co_return out;
}

} // namespace

Task<Result<GroupProtection>> protect_group_key(hwtpm::RootOfTrust& root, SecretBytes key, Bytes approver,
                                                ApprovalList approved) {
    if (auto verified = verify(approved, approved.group, approver); !verified) {
        co_return verified.error();
    }
    auto seals = co_await seal_for_list(root, std::move(key), approver, approved);
    if (!seals) {
        co_return seals.error();
    }
    GroupProtection out{.approver = std::move(approver), .approved = std::move(approved), .seals = std::move(*seals)};
    co_return out;
}

Task<Result<SecretBytes>> open_group_key(hwtpm::RootOfTrust& root, GroupProtection protection) {
    const ApprovalList& list = protection.approved;
    auto selections = selections_of(list);
    auto present = co_await root.pcr_read(std::move(selections));
    if (!present) {
        co_return present.error();
    }
    const auto platform = find_platform(list, *present);
    if (!platform) {
        co_return make_error(Errc::pcr_mismatch, "group {} stays closed: {}", list.group,
                             explain_closed(list, *present));
    }
    if (root.version() == TpmVersion::tpm20) {
        if (protection.seals.size() != 1) {
            co_return make_error(Errc::mismatch, "group {}: sealed by another kind of TPM", list.group);
        }
        hwtpm::Approver who = approver_of(protection.approver, list);
        hwtpm::Approval approval = list.platforms[*platform];
        hwtpm::SealedSecret sealed = protection.seals.front();
        co_return co_await root.unseal_for(std::move(sealed), std::move(who), std::move(approval));
    }
    if (protection.seals.size() != list.platforms.size()) {
        co_return make_error(Errc::mismatch, "group {}: sealed by another kind of TPM", list.group);
    }
    hwtpm::SealedSecret sealed = protection.seals[*platform];
    co_return co_await root.unseal(std::move(sealed));
}

Task<Result<GroupProtection>> update_group(hwtpm::RootOfTrust& root, GroupProtection protection, ApprovalList approved,
                                           std::optional<SecretBytes> key) {
    if (auto verified = verify(approved, protection.approved.group, protection.approver); !verified) {
        co_return verified.error();
    }
    if (auto newer = may_replace(protection.approved, approved); !newer) {
        co_return newer.error();
    }
    const bool seal_holds = root.version() == TpmVersion::tpm20 && approved.epoch == protection.approved.epoch;
    if (!seal_holds) {
        if (!key) {
            co_return make_error(Errc::pcr_mismatch, "group {} is closed: {}. Open it first", protection.approved.group,
                                 root.version() == TpmVersion::tpm12
                                     ? "a TPM 1.2 seals its key anew for every platform"
                                     : "its key is sealed anew for a new epoch; approve the present platform within "
                                       "the present one");
        }
        auto seals = co_await seal_for_list(root, std::move(*key), protection.approver, approved);
        if (!seals) {
            co_return seals.error();
        }
        protection.seals = std::move(*seals);
    }
    protection.approved = std::move(approved);
    co_return protection;
}

} // namespace vtpmd::manager
