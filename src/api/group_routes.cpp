// Groups over HTTP: keys are PEM, lists and signatures hexadecimal.
#include "api/handlers.hpp"

#include "util/secret_bytes.hpp"

namespace vtpmd::api {

namespace {

namespace json = boost::json;
using manager::GroupStatus;

constexpr Field new_group_fields[] = {
    {"approver", "string", true, "the approver's public key, RSA-2048 or ECDSA on P-256, PEM"},
    {"list", "string", true, "the first approval list, signed, hexadecimal; it names the group's UUID"},
    {"recovery_key", "string", false, "a public key on P-256, PEM, whose holder can recover the group's key"},
    {"recovery_signature", "string", false, "the approver's signature for that key, hexadecimal"},
};
constexpr Field list_fields[] = {
    {"list", "string", true, "a newer approval list, signed, hexadecimal"},
};
constexpr Field ca_fields[] = {
    {"certificates", "string", true,
     "PEM: the certificate that another CA made from this one's request, then, as far as wanted, those of its issuers"},
};
constexpr Field recover_fields[] = {
    {"shared", "string", true, "ECDH of the recovery key with recovery_challenge, hexadecimal"},
};

json::object brief(const GroupStatus& g) {
    return {{"uuid", to_string(g.uuid)}, {"number", whole(g.number)},     {"open", g.open},
            {"vtpms", whole(g.vtpms)},   {"sequence", whole(g.sequence)}, {"created", whole(g.created)},
            {"why_closed", g.why_closed}};
}

json::object in_full(const GroupStatus& g) {
    json::object o = brief(g);
    o["epoch"] = whole(g.epoch);
    json::array platforms;
    for (const manager::SealInfo& p : g.platforms) {
        platforms.push_back(json::object{{"selection", p.selection}, {"pcrs", pcrs_json(p.pcrs)}});
    }
    o["platforms"] = std::move(platforms);
    o["labels"] = json::array(g.labels.begin(), g.labels.end());
    o["approver"] = g.approver;
    o["attestation_key"] = g.attestation_key;
    o["attestation_public"] = g.attestation_public;
    o["identity_binding"] = g.identity_binding;
    o["recovery_challenge"] = g.recovery_challenge;
    return o;
}

Result<Response> shown(unsigned status, const Result<GroupStatus>& group) {
    if (!group) {
        return group.error();
    }
    return answer(status, in_full(*group));
}

Task<Result<Response>> list_groups(Call call) {
    json::array all;
    for (const GroupStatus& g : call.control.groups()) {
        all.push_back(brief(g));
    }
    co_return answer(200, json::object{{"groups", std::move(all)}});
}

Task<Result<Response>> show_group(Call call) { co_return shown(200, call.control.group(call.uuid)); }

Task<Result<Response>> create_group(Call call) {
    auto list = bytes_of(call.body, "list");
    auto signature = bytes_of(call.body, "recovery_signature");
    if (!list || !signature) {
        co_return list ? signature.error() : list.error();
    }
    manager::NewGroup request;
    request.approver = text_of(call.body, "approver", "");
    request.list = std::move(*list);
    request.recovery_key = text_of(call.body, "recovery_key", "");
    request.recovery_signature = std::move(*signature);
    auto made = co_await call.control.create_group(std::move(request));
    co_return shown(201, made);
}

Task<Result<Response>> update_group(Call call) {
    auto list = bytes_of(call.body, "list");
    if (!list) {
        co_return list.error();
    }
    auto updated = co_await call.control.update_group(call.uuid, std::move(*list));
    co_return shown(200, updated);
}

/// The secret opens one box, which is replaced before this returns; it is worth nothing afterwards.
Task<Result<Response>> recover_group(Call call) {
    auto shared = bytes_of(call.body, "shared");
    if (!shared) {
        co_return shared.error();
    }
    SecretBytes secret(*shared);
    cleanse(*shared);
    auto recovered = co_await call.control.recover_group(call.uuid, std::move(secret));
    co_return shown(200, recovered);
}

Task<Result<Response>> delete_group(Call call) {
    auto removed = co_await call.control.remove_group(call.uuid);
    if (!removed) {
        co_return removed.error();
    }
    co_return answer(200, json::object{{"uuid", to_string(call.uuid)}, {"deleted", true}});
}

Result<Response> ca_shown(const Result<manager::CaInfo>& ca) {
    if (!ca) {
        return ca.error();
    }
    return answer(200, json::object{{"certificates", ca->certificates}, {"request", ca->request}});
}

Task<Result<Response>> show_ca(Call call) {
    auto ca = co_await call.control.group_ca(call.uuid, call.may_change ? manager::NoCa::make : manager::NoCa::refuse);
    co_return ca_shown(ca);
}

Task<Result<Response>> set_ca(Call call) {
    auto ca = co_await call.control.set_group_ca(call.uuid, std::string(text_of(call.body, "certificates", "")));
    co_return ca_shown(ca);
}

} // namespace

std::vector<Route> group_routes() {
    return {
        {{"GET", "/v1/groups", "All groups", {}}, list_groups},
        {{"POST", "/v1/groups", "Makes a group for an approver", new_group_fields}, create_group},
        {{"GET", "/v1/groups/{uuid}", "One group, with its approval list and keys", {}}, show_group},
        {{"DELETE", "/v1/groups/{uuid}", "Deletes a group that has no vTPMs", {}}, delete_group},
        {{"POST", "/v1/groups/{uuid}/update", "A newer approval list takes the place of the present one", list_fields},
         update_group},
        {{"GET", "/v1/groups/{uuid}/ca", "The CA of its vTPMs' endorsement keys: certificates, and a request, PEM", {}},
         show_ca},
        {{"PUT", "/v1/groups/{uuid}/ca", "Another CA's certificate for that CA", ca_fields}, set_ca},
        {{"POST", "/v1/groups/{uuid}/recover", "The group's key, from its approver, for a replaced hardware TPM",
          recover_fields},
         recover_group},
    };
}

} // namespace vtpmd::api
