#include "manager/groups/vtpmmgr_group.hpp"

#include "manager/vault/crypto.hpp"
#include "tpm/pcr.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

using proto::management::GroupRegister;
using proto::management::GroupUpdate;
using proto::management::PcrMask;

/// GROUP_SHOW's answer carries the list after UUID and modulus, in one packet.
constexpr std::size_t list_size_limit =
    proto::management::answer_limit - proto::header_size - sizeof(Uuid::bytes) - proto::management::number_size;

Bytes escrow_aad(const Uuid& group) {
    WireWriter w;
    return w.bytes(as_bytes("vtpmd old group")).bytes(group.bytes).take();
}

hwtpm::HashAlg composite_bank(const hwtpm::RootOfTrust& root) {
    const auto banks = root.banks();
    return std::ranges::count(banks, hwtpm::HashAlg::sha1) != 0 ? hwtpm::HashAlg::sha1 : hwtpm::HashAlg::sha256;
}

hwtpm::PcrSelection masked_pcrs(hwtpm::HashAlg bank, PcrMask mask) {
    hwtpm::PcrSelection out{.bank = bank, .pcrs = {}};
    for (unsigned i = 0; i < hwtpm::pcr_count; ++i) {
        if ((mask >> i & 1U) != 0) {
            out.pcrs.push_back(i);
        }
    }
    return out;
}

/// The values of a selection out of more of them.
std::vector<hwtpm::PcrValue> pick(const hwtpm::PcrSelection& selection, const std::vector<hwtpm::PcrValue>& values) {
    std::vector<hwtpm::PcrValue> out;
    std::ranges::copy_if(values, std::back_inserter(out), [&](const hwtpm::PcrValue& v) {
        return v.bank == selection.bank && std::ranges::count(selection.pcrs, v.index) != 0;
    });
    return out;
}

/// The place in the list of the platform that the host is now. Errc::pcr_mismatch: none.
Task<Result<std::size_t>> find_composite(hwtpm::RootOfTrust& root, Uuid group, GroupUpdate update) {
    const hwtpm::HashAlg bank = composite_bank(root);
    PcrMask all = 0;
    for (PcrMask mask : update.selections) {
        all |= mask;
    }
    std::vector<hwtpm::PcrSelection> wanted{masked_pcrs(bank, all)};
    auto present = co_await root.pcr_read(std::move(wanted));
    if (!present) {
        co_return present.error();
    }
    std::string seen;
    for (std::size_t i = 0; i < update.selections.size(); ++i) {
        const hwtpm::PcrSelection selection = masked_pcrs(bank, update.selections[i]);
        const auto values = pick(selection, *present);
        if (!hwtpm::fits(values, selection)) {
            continue; // a PCR that this TPM has not
        }
        auto composite = hwtpm::pcr_composite(selection, values);
        if (!composite) {
            co_return composite.error();
        }
        if (std::ranges::equal(*composite, update.list.platforms[i])) {
            co_return i;
        }
        seen = fmt::format("; of {} it is {}", hwtpm::to_string(selection), to_hex(*composite));
    }
    co_return make_error(Errc::pcr_mismatch,
                         "group {} stays closed: the present platform is none of the {} composites of list {}{}", group,
                         update.list.platforms.size(), update.list.sequence, seen);
}

Result<SecretBytes> open_escrow(const Uuid& group, const SecretBytes& escrow, const Bytes& box) {
    auto key = open_box(escrow, escrow_aad(group), box);
    return key ? std::move(key) : Result<SecretBytes>(in_context(key.error(), fmt::format("group {}'s key", group)));
}

Result<void> check_list(const GroupDetail& detail, const GroupUpdate& update) {
    if (!detail.old) {
        return make_error(Errc::usage, "group {} is not of the old form: its lists are signed with SHA-256",
                          detail.protection.approved.group);
    }
    const Bytes list = encode(update.list);
    if (auto signed_ = hwtpm::verify_sha1(detail.protection.approver, list, update.signature); !signed_) {
        return in_context(signed_.error(),
                          fmt::format("group {}: list {}", detail.protection.approved.group, update.list.sequence));
    }
    const std::uint64_t present = detail.protection.approved.sequence;
    if (update.list.sequence <= present) {
        return make_error(Errc::rollback, "group {}: list {} is not newer than {}", detail.protection.approved.group,
                          update.list.sequence, present);
    }
    if (update.list.platforms.empty() || std::ranges::count(update.selections, PcrMask{0}) != 0) {
        return make_error(Errc::usage, "a list without platforms, or with one without PCRs");
    }
    if (update.list.platforms.size() > platform_limit || list.size() > list_size_limit) {
        return make_error(Errc::too_large, "a list of {} platforms and {} labels: at most {}, and {} together",
                          update.list.platforms.size(), update.list.labels.size(), platform_limit,
                          list_size_limit / sizeof(proto::management::Hash) - 1);
    }
    return {};
}

/// For TPM 1.2: one seal for each composite of the list.
Task<Result<std::vector<hwtpm::SealedSecret>>> seal_to_composites(hwtpm::RootOfTrust& root, GroupUpdate update,
                                                                  SecretBytes key) {
    std::vector<hwtpm::SealedSecret> seals;
    for (std::size_t i = 0; i < update.selections.size(); ++i) {
        hwtpm::RootOfTrust::SealOptions options; // the approver says what is good
        options.selection = masked_pcrs(hwtpm::HashAlg::sha1, update.selections[i]);
        options.allow_zero_pcrs = true;
        options.composite = to_bytes(update.list.platforms[i]);
        SecretBytes secret = key.clone();
        auto sealed = co_await root.seal(std::move(secret), std::move(options));
        if (!sealed) {
            co_return sealed.error();
        }
        seals.push_back(std::move(*sealed));
    }
    co_return seals;
}

SecretBytes check_of(const Uuid& group, const SecretBytes& key) {
    return derive_key(key, "vtpmd old group check", group.bytes);
}

Result<OldRegistration> make_registration(const Uuid& group, const GroupRegister& request, const SecretBytes& key) {
    auto own = DhHalf::make();
    if (!own) {
        return own.error();
    }
    auto shared = own->share(request.dh);
    if (!shared) {
        return shared.error();
    }
    OldRegistration out{.approver_half = request.dh, .manager_half = own->value(), .blob = {}, .check = {}};
    auto blob =
        close_blob({.name = exchange_register, .group = group, .first = out.approver_half, .second = out.manager_half},
                   *shared, key);
    if (!blob) {
        return blob.error();
    }
    out.blob = *blob;
    std::ranges::copy(check_of(group, key).view(), out.check.begin());
    return out;
}

} // namespace

Result<Bytes> old_approver(ByteView modulus) {
    const bool looks_like_one = modulus.size() == proto::management::number_size &&
                                std::to_integer<unsigned>(modulus.front()) >= 0x80 &&
                                (std::to_integer<unsigned>(modulus.back()) & 1U) != 0;
    if (!looks_like_one) {
        return make_error(Errc::usage, "the approver's key: expected an odd modulus of 2048 bits");
    }
    return hwtpm::to_spki({.type = hwtpm::KeyType::rsa_2048, .modulus = to_bytes(modulus), .x = {}, .y = {}});
}

GroupDetail new_old_group(const Uuid& group, Bytes approver, const SecretBytes& escrow, const SecretBytes& key) {
    GroupDetail out;
    out.protection.approver = std::move(approver);
    out.protection.approved.group = group;
    out.protection.approved.sequence = 0;
    out.old = OldForm{.update = std::nullopt, .box = close_box(escrow, escrow_aad(group), key.view())};
    return out;
}

Task<Result<SecretBytes>> open_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, SecretBytes escrow) {
    const Uuid group = detail.protection.approved.group;
    const bool listed = detail.old->update.has_value();
    const bool boxed = !listed || root.version() == TpmVersion::tpm20;
    std::size_t place = 0; // among the seals: of a box there is one
    if (listed) {
        GroupUpdate update = *detail.old->update;
        auto found = co_await find_composite(root, group, std::move(update));
        if (!found) {
            co_return found.error();
        }
        place = boxed ? 0 : *found;
    }
    if (boxed && !detail.old->box.empty()) {
        co_return open_escrow(group, escrow, detail.old->box);
    }
    if (boxed != detail.old->sealed_box || place >= detail.protection.seals.size()) {
        co_return make_error(Errc::mismatch, "group {}: sealed by another kind of TPM", group);
    }
    hwtpm::SealedSecret sealed = detail.protection.seals[place];
    auto opened = co_await root.unseal(std::move(sealed));
    if (!opened || !boxed) {
        co_return opened;
    }
    co_return open_escrow(group, escrow, to_bytes(opened->view()));
}

Task<Result<GroupDetail>> update_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, GroupUpdate update,
                                           std::optional<SecretBytes> key) {
    if (auto good = check_list(detail, update); !good) {
        co_return good.error();
    }
    if (root.version() == TpmVersion::tpm12) {
        if (!key) {
            co_return make_error(Errc::pcr_mismatch,
                                 "group {} is closed: a TPM 1.2 seals its key anew for every platform. Open it first",
                                 detail.protection.approved.group);
        }
        GroupUpdate list = update;
        auto seals = co_await seal_to_composites(root, std::move(list), std::move(*key));
        if (!seals) {
            co_return seals.error();
        }
        detail.protection.seals = std::move(*seals);
        detail.old->box.clear();
        detail.old->sealed_box = false;
    }
    detail.protection.approved.sequence = update.list.sequence;
    detail.protection.approved.labels = update.list.labels;
    detail.old->update = std::move(update);
    co_return detail;
}

Task<Result<GroupDetail>> protect_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, SecretBytes escrow,
                                            SecretBytes key) {
    const bool composites = root.version() == TpmVersion::tpm12 && detail.old->update;
    std::vector<hwtpm::SealedSecret> seals;
    if (composites) {
        GroupUpdate list = *detail.old->update;
        auto made = co_await seal_to_composites(root, std::move(list), std::move(key));
        if (!made) {
            co_return made.error();
        }
        seals = std::move(*made);
    } else {
        SecretBytes box{ByteView(close_box(escrow, escrow_aad(detail.protection.approved.group), key.view()))};
        hwtpm::RootOfTrust::SealOptions options;
        options.selection = masked_pcrs(composite_bank(root), 0);
        auto made = co_await root.seal(std::move(box), std::move(options));
        if (!made) {
            co_return made.error();
        }
        seals.push_back(std::move(*made));
    }
    detail.protection.seals = std::move(seals);
    detail.old->box.clear();
    detail.old->sealed_box = !composites;
    co_return detail;
}

Task<Result<GroupDetail>> register_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, GroupRegister request,
                                             SecretBytes escrow, SecretBytes key) {
    const Uuid group = detail.protection.approved.group;
    if (!detail.old) {
        co_return make_error(Errc::usage, "group {} is not of the old form: its recovery key is named when it is made",
                             group);
    }
    auto proven = hwtpm::verify_sha1(detail.protection.approver, register_message(group, request.dh), request.proof);
    if (!proven) {
        co_return in_context(proven.error(), fmt::format("group {}: the approver's word for its half", group));
    }
    if (detail.old->registration) {
        if (detail.old->registration->approver_half != request.dh) {
            co_return make_error(Errc::exists, "group {} is registered, with another half of the approver's", group);
        }
        co_return detail;
    }
    auto made = make_registration(group, request, key);
    if (!made) {
        co_return made.error();
    }
    detail.old->registration = *made;
    co_return co_await protect_old_group(root, std::move(detail), std::move(escrow), std::move(key));
}

Result<SecretBytes> recovered_key(const GroupDetail& detail, const DhHalf& own,
                                  const proto::management::GroupRecover2& answer) {
    const Uuid group = detail.protection.approved.group;
    if (!detail.old || !detail.old->registration) {
        return make_error(Errc::usage, "group {}: its approver has not registered it (GROUP_REGISTER)", group);
    }
    auto shared = own.share(answer.dh);
    if (!shared) {
        return shared.error();
    }
    auto key = open_blob({.name = exchange_recover, .group = group, .first = own.value(), .second = answer.dh}, *shared,
                         answer.blob);
    if (!key) {
        return key.error();
    }
    if (!check_of(group, *key).equals(detail.old->registration->check)) {
        return make_error(Errc::permission, "group {}: what came is not its key, closed for the present exchange",
                          group);
    }
    return key;
}

} // namespace vtpmd::manager
