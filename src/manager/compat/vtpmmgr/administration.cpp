#include "manager/compat/vtpmmgr/administration.hpp"

#include "manager/groups/vtpmmgr_config_list.hpp"
#include "tpm/pcr.hpp"
#include "tpm/sha1.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace management = proto::management;

namespace {

constexpr std::uint32_t version_12 = 0x0102;
constexpr std::uint32_t version_20 = 0x0200;
// TPM Main part 2 sections 4.8 and 4.9
constexpr std::uint32_t alg_aes_128 = 6;
constexpr std::uint32_t alg_xor = 0xA;
constexpr std::uint16_t es_none = 1;
constexpr std::size_t aes_128_size = 16;

/// RSA's bytes out of a TPMT_SIGNATURE (TPM 2.0 part 2 section 11.3.4), or what a TPM 1.2 gave.
Result<Bytes> rsa_signature(TpmVersion version, const Bytes& signature) {
    Bytes out = signature;
    if (version == TpmVersion::tpm20) {
        WireReader in(signature);
        in.skip(2 + 2); // scheme and hash
        out = to_bytes(in.bytes(in.be16()));
        if (!in.expect_end()) {
            out.clear();
        }
    }
    if (out.size() != management::number_size) {
        return make_error(Errc::unsupported, "the group's attestation key is not one of RSA-2048");
    }
    return out;
}

} // namespace

Administration::Administration(Options options, Parts parts)
    : options_(options)
    , parts_(std::move(parts)) {}

Task<Result<Bytes>> Administration::run(Bytes frame) {
    auto request = management::parse(frame);
    if (!request) {
        co_return request.error();
    }
    const std::string name(management::name_of(*request));
    Task<Result<Bytes>> asked = std::visit([this](auto& r) { return answer(std::move(r)); }, *request);
    auto body = co_await std::move(asked);
    if (!body) {
        co_return in_context(body.error(), name);
    }
    if (body->size() > management::answer_limit - proto::header_size) {
        co_return make_error(Errc::too_large, "{}: an answer of {} bytes does not fit into a packet", name,
                             body->size());
    }
    co_return body;
}

Result<GroupId> Administration::group_at(std::uint32_t number) const {
    const auto& groups = parts_.vault.registry().groups();
    if (number >= groups.size()) {
        return make_error(Errc::not_found, "there is no group {}: there are {}", number, groups.size());
    }
    return std::next(groups.begin(), number)->first;
}

std::uint32_t Administration::number_of(GroupId id) const {
    const auto& groups = parts_.vault.registry().groups();
    return static_cast<std::uint32_t>(std::distance(groups.begin(), groups.find(id)));
}

// --- groups ---

Task<Result<Bytes>> Administration::answer(management::GroupList /*r*/) {
    WireWriter w;
    co_return w.be32(static_cast<std::uint32_t>(parts_.vault.registry().groups().size())).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupNew r) {
    auto id = co_await parts_.groups.create_old(to_bytes(r.modulus), to_bytes(r.chosen_id));
    if (!id) {
        co_return id.error();
    }
    auto made = parts_.groups.show(*id);
    if (!made) {
        co_return made.error();
    }
    WireWriter w;
    w.bytes(made->uuid.bytes).bytes(old_modulus(made->attestation_key));
    // On a TPM 2.0 there is none: credential activation proves the key to be the TPM's.
    made->identity_binding.resize(management::number_size);
    co_return w.bytes(made->identity_binding).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupDel r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto removed = co_await parts_.groups.remove(*id);
    if (!removed) {
        co_return removed.error();
    }
    co_return Bytes{};
}

Task<Result<Bytes>> Administration::answer(management::GroupActivate r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto secret = co_await parts_.groups.activate(*id, std::move(r.blob));
    if (!secret) {
        co_return secret.error();
    }
    WireWriter w; // TPM_SYMMETRIC_KEY, TPM Main part 2 section 5.10
    w.be32(secret->size() == aes_128_size ? alg_aes_128 : alg_xor).be16(es_none);
    co_return w.be16(static_cast<std::uint16_t>(secret->size())).bytes(secret->view()).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupRegister r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    const management::PcrMask pcrs = r.pcrs;
    auto made = co_await parts_.groups.register_old(*id, std::move(r));
    if (!made) {
        co_return made.error();
    }
    auto data = tpm::sha1({as_bytes(exchange_register), made->approver_half, made->manager_half, made->blob});
    if (!data) {
        co_return data.error();
    }
    auto quote = co_await quote_by(*id, to_bytes(*data), pcrs);
    if (!quote) {
        co_return quote.error();
    }
    WireWriter w;
    co_return w.bytes(made->manager_half).bytes(made->blob).bytes(quote->signature).bytes(quote->attested).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupUpdate r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto updated = co_await parts_.groups.update_old(*id, std::move(r));
    if (!updated) {
        co_return updated.error();
    }
    co_return Bytes{};
}

Task<Result<Bytes>> Administration::answer(management::GroupShow r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto group = parts_.groups.show(*id);
    if (!group) {
        co_return group.error();
    }
    auto list = old_list(*group);
    if (!list) {
        co_return list.error();
    }
    WireWriter w;
    w.bytes(group->uuid.bytes).bytes(old_modulus(group->approver)).bytes(encode(*list));
    if (w.size() > management::answer_limit - proto::header_size) { // of our own form: an old list is held to what fits
        co_return make_error(
            Errc::too_large,
            "group {} has {} platforms and {} labels, more than a packet carries: vtpmctl group show {}", r.group,
            list->platforms.size(), list->labels.size(), group->uuid);
    }
    co_return w.take();
}

Task<Result<Bytes>> Administration::answer(management::GroupQuote r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    const WireWriter flags = WireWriter().be32(0); // no more is asked for than the nonce
    auto nonce = tpm::sha1({flags.view(), r.nonce});
    if (!nonce) {
        co_return nonce.error();
    }
    auto quote = co_await quote_by(*id, to_bytes(*nonce), r.pcrs);
    if (!quote) {
        co_return quote.error();
    }
    WireWriter w;
    w.bytes(quote->signature);
    for (const hwtpm::PcrValue& v : quote->values) {
        w.bytes(v.digest);
    }
    co_return w.bytes(quote->attested).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupRecover1 r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto proxy = group_of_key(r.key);
    if (!proxy) {
        co_return proxy.error();
    }
    auto half = co_await parts_.groups.begin_recovery(*id);
    if (!half) {
        co_return half.error();
    }
    auto data = tpm::sha1({as_bytes(exchange_recover), r.nonce, *half});
    if (!data) {
        co_return data.error();
    }
    auto quote = co_await quote_by(*proxy, to_bytes(*data), r.pcrs);
    if (!quote) {
        co_return quote.error();
    }
    WireWriter w;
    co_return w.bytes(*half).bytes(quote->signature).bytes(quote->attested).take();
}

Task<Result<Bytes>> Administration::answer(management::GroupRecover2 r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto recovered = co_await parts_.groups.recover_old(*id, std::move(r));
    if (!recovered) {
        co_return recovered.error();
    }
    co_return Bytes{};
}

Task<Result<hwtpm::Quote>> Administration::quote_by(GroupId id, Bytes data, management::PcrMask pcrs) {
    const auto banks = parts_.root.banks();
    const bool sha1 = std::ranges::count(banks, hwtpm::HashAlg::sha1) != 0;
    hwtpm::PcrSelection selection{.bank = sha1 ? hwtpm::HashAlg::sha1 : hwtpm::HashAlg::sha256, .pcrs = {}};
    for (unsigned i = 0; i < hwtpm::pcr_count; ++i) {
        if ((pcrs >> i & 1U) != 0) {
            selection.pcrs.push_back(i);
        }
    }
    hwtpm::QuoteRequest request{.nonce = std::move(data), .selections = {std::move(selection)}};
    auto quote = co_await parts_.groups.quote(id, std::move(request));
    if (!quote) {
        co_return quote.error();
    }
    auto signature = rsa_signature(parts_.root.version(), quote->signature);
    if (!signature) {
        co_return signature.error();
    }
    quote->signature = std::move(*signature);
    if (parts_.root.version() == TpmVersion::tpm12) {
        quote->attested.clear(); // it follows from the values
    }
    co_return quote;
}

Result<GroupId> Administration::group_of_key(ByteView tpm_key) const {
    const Bytes modulus = management::modulus_of_key(tpm_key);
    for (const GroupInfo& group : parts_.groups.list()) {
        if (!group.attestation_key.empty() && old_modulus(group.attestation_key) == modulus) {
            return group.id;
        }
    }
    return make_error(Errc::not_found,
                      "the key to quote by is no group's attestation key: make a group with GROUP_NEW, "
                      "and name its key");
}

// --- vTPMs ---

Task<Result<Bytes>> Administration::answer(management::VtpmList r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    std::vector<Uuid> all;
    for (const auto& [uuid, vtpm] : parts_.vault.registry().vtpms()) {
        if (vtpm.group == *id) {
            all.push_back(uuid);
        }
    }
    std::ranges::sort(all); // so that the pages of a long list fit together
    co_return management::encode_vtpm_list(all, r.offset);
}

Task<Result<Bytes>> Administration::answer(management::VtpmShow r) {
    const auto* vtpm = parts_.vault.registry().find(r.uuid);
    if (vtpm == nullptr) {
        co_return make_error(Errc::not_found, "vTPM {} is not registered with this manager", r.uuid);
    }
    const management::VtpmStatus status{.group = number_of(vtpm->group),
                                        .open = parts_.service.is_open(r.uuid),
                                        .has_state = vtpm->sequence != 0,
                                        .administrator = r.uuid == options_.admin,
                                        .version = vtpm->version == TpmVersion::tpm12 ? version_12 : version_20,
                                        .created = vtpm->created,
                                        .saves = vtpm->sequence};
    co_return encode(status);
}

Task<Result<Bytes>> Administration::answer(management::VtpmEdit r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    auto moved = co_await parts_.service.move(r.uuid, *id);
    if (!moved) {
        co_return moved.error();
    }
    co_return Bytes{};
}

Task<Result<Bytes>> Administration::answer(management::VtpmNew r) {
    auto id = group_at(r.group);
    if (!id) {
        co_return id.error();
    }
    const Uuid uuid = r.uuid ? *r.uuid : random_uuid();
    auto made = co_await parts_.service.enrol(uuid, options_.new_vtpms, *id);
    if (!made) {
        co_return made.error();
    }
    co_return to_bytes(uuid.bytes);
}

Task<Result<Bytes>> Administration::answer(management::VtpmDel r) {
    auto removed = co_await parts_.remove_vtpm(r.uuid);
    if (!removed) {
        co_return removed.error();
    }
    co_return Bytes{};
}

} // namespace vtpmd::manager
