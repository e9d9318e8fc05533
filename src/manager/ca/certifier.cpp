#include "manager/ca/certifier.hpp"

namespace vtpmd::manager {

namespace {

/// A TPM 2.0 has both keys, a TPM 1.2 its one.
bool has_key(TpmVersion family, proto::EkKind kind) {
    return kind == proto::EkKind::rsa_2048 || family == TpmVersion::tpm20;
}

} // namespace

Result<CertifierDetail> Certifier::stored(GroupId group) const {
    const Registry::Group* known = parts_.vault.registry().group(group);
    if (known == nullptr || known->certifier.empty()) {
        return make_error(Errc::not_found, "there is no group {}, or it has no CA", group);
    }
    return decode_certifier_detail(known->certifier);
}

Task<Result<CertifierDetail>> Certifier::detail(GroupId group) {
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    const Registry::Group* known = parts_.vault.registry().group(group);
    if (known == nullptr) {
        co_return make_error(Errc::not_found, "there is no group {}", group);
    }
    if (!known->certifier.empty()) {
        co_return stored(group);
    }
    const SecretBytes* group_key = parts_.vault.group_key(group);
    if (group_key == nullptr) {
        co_return make_error(Errc::pcr_mismatch, "{}", parts_.vault.why_closed(group));
    }
    const Uuid uuid = known->uuid;
    auto made = make_ca(fmt::format("vtpmd group {}", uuid), parts_.unix_time());
    if (!made) {
        co_return made.error();
    }
    CertifierDetail out{.box = box_ca_key(*group_key, uuid, made->key),
                        .request = std::move(made->request),
                        .chain = {std::move(made->certificate)}};
    auto kept = co_await parts_.vault.keep_certifier(group, encode(out));
    if (!kept) {
        co_return in_context(kept.error(), fmt::format("the CA of group {}", group));
    }
    parts_.log.info("group {} ({}): a CA for endorsement keys was made", group, uuid);
    co_return out;
}

Task<Result<Bytes>> Certifier::certify(Uuid vtpm, proto::CertifyRequest claim) {
    const Registry& registry = parts_.vault.registry();
    const Registry::Vtpm* known = registry.find(vtpm);
    if (known == nullptr) {
        co_return make_error(Errc::not_found, "vTPM {} is not registered any more", vtpm);
    }
    if (!known->key.empty() || known->returned) {
        co_return make_error(Errc::usage, "vTPM {} has a state: its endorsement keys were certified when it was made",
                             vtpm);
    }
    if (!has_key(known->version, claim.kind)) {
        co_return make_error(Errc::usage, "vTPM {}: a TPM {} has no such endorsement key", vtpm,
                             to_string(known->version));
    }
    const GroupId group = known->group;
    auto ca = co_await detail(group);
    if (!ca) {
        co_return ca.error();
    }
    // That may have taken a while.
    known = registry.find(vtpm);
    const SecretBytes* group_key = parts_.vault.group_key(group);
    if (known == nullptr || known->group != group || group_key == nullptr) {
        co_return make_error(Errc::pcr_mismatch, "vTPM {}: its group was closed, or it is gone", vtpm);
    }
    auto key = unbox_ca_key(*group_key, registry.group(group)->uuid, ca->box);
    if (!key) {
        co_return key.error();
    }
    EkCertificate what;
    what.vtpm = vtpm;
    what.family = known->version;
    what.claim = std::move(claim);
    what.unix_time = parts_.unix_time();
    co_return issue_ek_certificate(*key, ca->chain.front(), what);
}

Task<Result<Certifier::Ca>> Certifier::show(GroupId group) {
    auto ca = co_await detail(group);
    if (!ca) {
        co_return ca.error();
    }
    co_return Ca{.chain = std::move(ca->chain), .request = std::move(ca->request)};
}

Task<Result<Certifier::Ca>> Certifier::replace(GroupId group, std::string pem) {
    if (auto there = co_await detail(group); !there) {
        co_return there.error();
    }
    auto guard = co_await lock_.acquire();
    if (!guard) {
        co_return guard.error();
    }
    auto ca = stored(group);
    if (!ca) {
        co_return ca.error();
    }
    auto chain = read_chain(pem, ca->chain.front(), parts_.unix_time());
    if (!chain) {
        co_return chain.error();
    }
    ca->chain = std::move(*chain);
    if (auto kept = co_await parts_.vault.keep_certifier(group, encode(*ca)); !kept) {
        co_return kept.error();
    }
    parts_.log.info("group {}: its CA has a certificate from outside now, {} in its chain", group, ca->chain.size());
    co_return Ca{.chain = std::move(ca->chain), .request = std::move(ca->request)};
}

} // namespace vtpmd::manager
