#include "manager/groups/deep_quotes.hpp"

#include "manager/groups/vtpmmgr_config_list.hpp"
#include "quote/deep_quote.hpp"
#include "quote/old_quote.hpp"
#include "tpm/codes.hpp"
#include "tpm/pcr.hpp"

#include <algorithm>

namespace vtpmd::manager {

Result<DeepQuotes::Standing> DeepQuotes::standing(const Uuid& vtpm) const {
    const Registry& registry = parts_.vault.registry();
    const Registry::Vtpm* known = registry.find(vtpm);
    if (known == nullptr) {
        return make_error(Errc::not_found, "vTPM {} is not registered any more", vtpm);
    }
    if (known->group == 0) {
        return make_error(
            Errc::unsupported,
            "vTPM {} is in group 0, the store's own, which has no attestation key; vTPMs that are to show "
            "quotes are made in a group with an approver",
            vtpm);
    }
    const Registry::Group* group = registry.group(known->group);
    if (group == nullptr || !parts_.vault.group_open(known->group)) {
        return make_error(Errc::pcr_mismatch, "vTPM {}: {}", vtpm, parts_.vault.why_closed(known->group));
    }
    return Standing{.id = known->group, .group = group->uuid};
}

Result<std::vector<hwtpm::PcrSelection>>
DeepQuotes::selections(const std::vector<proto::QuoteSelection>& asked_for) const {
    const std::vector<hwtpm::HashAlg> banks = parts_.root.banks();
    std::vector<hwtpm::PcrSelection> out;
    for (const proto::QuoteSelection& asked : asked_for) {
        hwtpm::PcrSelection s{.bank = static_cast<hwtpm::HashAlg>(asked.bank), .pcrs = {}};
        if (asked.bank == 0) {
            const bool sha256 = std::find(banks.begin(), banks.end(), hwtpm::HashAlg::sha256) != banks.end();
            s.bank = sha256 ? hwtpm::HashAlg::sha256 : hwtpm::HashAlg::sha1;
        }
        if (std::find(banks.begin(), banks.end(), s.bank) == banks.end()) {
            return make_error(Errc::usage, "a quote over bank 0x{:x}: the hardware TPM has no such PCRs", asked.bank);
        }
        for (unsigned p = 0; p < hwtpm::pcr_count; ++p) {
            if ((asked.pcrs >> p & 1U) != 0) {
                s.pcrs.push_back(p);
            }
        }
        out.push_back(std::move(s));
    }
    return out;
}

Result<Uuid> DeepQuotes::can_make(const Uuid& vtpm, const std::vector<proto::QuoteSelection>& host_pcrs) const {
    auto there = standing(vtpm);
    if (!there) {
        return there.error();
    }
    if (auto pcrs = selections(host_pcrs); !pcrs) {
        return pcrs.error();
    }
    return there->group;
}

Task<Result<proto::QuoteReply>> DeepQuotes::make(Uuid vtpm, proto::QuoteRequest request) {
    auto before = standing(vtpm);
    if (!before) {
        co_return before.error();
    }
    auto pcrs = selections(request.selections);
    if (!pcrs) {
        co_return pcrs.error();
    }
    quote::DeepQuoteClaims claims;
    claims.vtpm = vtpm;
    claims.group = before->group;
    claims.endorsement = std::move(request.endorsement);
    claims.pcrs = std::move(request.pcrs);
    claims.nonce = std::move(request.nonce);
    auto digest = quote::deep_quote_digest(parts_.root.version(), claims);
    if (!digest) {
        co_return digest.error();
    }
    hwtpm::QuoteRequest ask{.nonce = std::move(*digest), .selections = std::move(*pcrs)};
    auto quoted = co_await parts_.groups.quote(before->id, std::move(ask));
    if (!quoted) {
        co_return quoted.error();
    }
    // That took the hardware a while.
    if (auto after = standing(vtpm); !after) {
        co_return after.error();
    }
    proto::QuoteReply reply;
    reply.hardware = parts_.root.version();
    reply.group = before->group;
    reply.attested = std::move(quoted->attested);
    reply.signature = std::move(quoted->signature);
    for (hwtpm::PcrValue& v : quoted->values) {
        reply.values.push_back({.bank = static_cast<std::uint16_t>(v.bank),
                                .index = static_cast<std::uint8_t>(v.index),
                                .digest = std::move(v.digest)});
    }
    co_return reply;
}

Result<Bytes> DeepQuotes::old_hashes(const OldClaims& claims, std::uint32_t flags) const {
    namespace flag = tpm::old_quote;
    auto group = parts_.groups.show(claims.group);
    auto list = group ? old_list(*group) : group.error();
    if (!list) {
        return list.error();
    }
    const Bytes approver = old_modulus(group->approver);
    if ((flags & (flag::group_list | flag::group_key)) != 0 && std::ranges::count(approver, std::byte{}) == 256) {
        return make_error(Errc::unsupported, "group {}'s approver has no RSA-2048 key, which the old form names",
                          group->uuid);
    }
    const Bytes encoded = encode(*list);
    Bytes out;
    const auto add = [&](std::uint32_t one, std::initializer_list<ByteView> parts) -> Result<void> {
        if ((flags & one) == 0) {
            return {};
        }
        auto digest = tpm::sha1(parts);
        if (digest) {
            out.insert(out.end(), digest->begin(), digest->end());
        }
        return digest ? Result<void>{} : digest.error();
    };
    for (const Result<void>& added : {add(flag::vtpm_uuid, {claims.vtpm.bytes}), add(flag::vtpm_label, {claims.label}),
                                      add(flag::group_list, {approver, encoded}), add(flag::group_key, {approver})}) {
        if (!added) {
            return added.error();
        }
    }
    return out;
}

Task<Result<Bytes>> DeepQuotes::make_old(Uuid vtpm, proto::BootHash label, proto::OldQuoteRequest request) {
    if (parts_.root.version() != TpmVersion::tpm12) {
        co_return make_error(Errc::unsupported, "a quote in the form of Xen's manager needs a hardware TPM 1.2; a "
                                                "deep quote with flags 0x80000000 is there for either");
    }
    auto before = standing(vtpm);
    if (!before) {
        co_return before.error();
    }
    auto hashes = old_hashes({.vtpm = vtpm, .label = label, .group = before->id}, request.flags);
    if (!hashes) {
        co_return hashes.error();
    }
    auto external = quote::old_external_data(request.flags, request.data, *hashes);
    if (!external) {
        co_return external.error();
    }
    hwtpm::PcrSelection pcrs{.bank = hwtpm::HashAlg::sha1, .pcrs = quote::selected(request.selection)};
    hwtpm::QuoteRequest ask{.nonce = to_bytes(*external),
                            .selections = {std::move(pcrs)},
                            .selection_size = static_cast<std::uint16_t>(request.selection.size())};
    auto quoted = co_await parts_.groups.quote(before->id, std::move(ask));
    if (!quoted) {
        co_return quoted.error();
    }
    if (auto after = standing(vtpm); !after) {
        co_return after.error();
    }
    Bytes out = std::move(quoted->signature);
    out.insert(out.end(), hashes->begin(), hashes->end());
    for (const hwtpm::PcrValue& v : quoted->values) {
        out.insert(out.end(), v.digest.begin(), v.digest.end());
    }
    if (out.size() != proto::old_quote_reply_size(request)) {
        co_return make_error(Errc::tpm, "the group's key signs with {} bytes: the old form has {}",
                             quoted->signature.size(), tpm::old_quote::signature_size);
    }
    co_return out;
}

} // namespace vtpmd::manager
