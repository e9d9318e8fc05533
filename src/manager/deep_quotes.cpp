#include "manager/deep_quotes.hpp"

#include "hwtpm/pcr.hpp"
#include "quote/deep_quote.hpp"

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

Result<std::vector<hwtpm::PcrSelection>> DeepQuotes::selections(const proto::QuoteRequest& request) const {
    const std::vector<hwtpm::HashAlg> banks = parts_.root.banks();
    std::vector<hwtpm::PcrSelection> out;
    for (const proto::QuoteSelection& asked : request.selections) {
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

Task<Result<proto::QuoteReply>> DeepQuotes::make(Uuid vtpm, proto::QuoteRequest request) {
    auto before = standing(vtpm);
    if (!before) {
        co_return before.error();
    }
    auto pcrs = selections(request);
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

} // namespace vtpmd::manager
