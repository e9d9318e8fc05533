// The table, the handlers for vTPMs and the host, and their JSON.
#include "api/errors.hpp"
#include "api/handlers.hpp"
#include "api/query.hpp"
#include "util/text.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>

namespace vtpmd::api {

namespace {

namespace json = boost::json;
using manager::Control;
using manager::VtpmInfo;

/// How many vTPMs of a list are told of before the others of this thread have their turn.
constexpr std::size_t list_stride = 500;
/// Bytes of one in a list; more if it has a name.
constexpr std::size_t usual_size = 200;

/// In OpenAPI's words.
bool is_of_type(const json::value& v, std::string_view type) {
    if (type == "boolean") {
        return v.is_bool();
    }
    return type == "integer" ? v.is_int64() : v.is_string();
}

/// Text at once: a list has tens of thousands of them. Nothing in it but a name needs an escape.
void add_json(std::string& out, const VtpmInfo& v) {
    const auto add = [&out](std::string_view before, std::string_view value) { out.append(before).append(value); };
    const auto add_number = [&add](std::string_view before, auto value) {
        const fmt::format_int digits(value);
        add(before, std::string_view(digits.data(), digits.size()));
    };
    add(R"({"uuid":")", to_string(v.uuid));
    if (v.name.empty()) {
        out += R"(","name":"")";
    } else {
        add(R"(","name":)", json::serialize(json::string(v.name)));
    }
    add(R"(,"tpm_version":")", to_string(v.version));
    add(R"(","group":")", to_string(v.group));
    add(R"(","state":")", to_string(v.state));
    add_number(R"(","created":)", v.created);
    add_number(R"(,"saves":)", v.saves);
    if (v.pid != 0) {
        add_number(R"(,"pid":)", v.pid);
    } else {
        out += R"(,"pid":null)";
    }
    if (v.user != 0) {
        add_number(R"(,"user":)", v.user);
    }
    if (v.reset != 0) {
        add_number(R"(,"reset":)", v.reset);
    }
    out += v.autostart ? R"(,"autostart":true})" : R"(,"autostart":false})";
}

Task<Result<Response>> get_host(Call call) { co_return host_answer(call.control.host()); }

/// Of those that there are when it is asked; one that goes meanwhile is not told of.
Task<Result<Response>> list_vtpms(Call call) {
    auto named = uuid_of(call.query, "group");
    if (!named) {
        co_return named.error();
    }
    const std::optional<Uuid> group = *named;
    if (group) {
        if (auto known = call.control.group(*group); !known) {
            co_return known.error();
        }
    }
    const bool by_name = call.query.contains("name");
    const std::string name(text_of(call.query, "name", ""));
    const std::vector<Uuid> all = call.control.vtpms();
    Response out{.body = R"({"vtpms":[)"};
    if (!group && !by_name) {
        out.body.reserve(all.size() * usual_size);
    }
    bool first = true;
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (i % list_stride == list_stride - 1) {
            co_await asio::post(asio::use_awaitable);
        }
        auto v = call.control.vtpm(all[i]);
        if (!v || (group && v->group != *group) || (by_name && v->name != name)) {
            continue;
        }
        if (!first) {
            out.body += ',';
        }
        first = false;
        add_json(out.body, *v);
    }
    out.body += "]}\n";
    co_return out;
}

Task<Result<Response>> show_vtpm(Call call) {
    auto v = call.control.vtpm(call.uuid);
    if (!v) {
        co_return v.error();
    }
    auto detail = call.control.detail(call.uuid);
    if (!detail) {
        co_return detail.error();
    }
    Response out = vtpm_answer(200, *v);
    json::object more{
        {"image", detail->image}, {"socket", detail->socket}, {"sandbox", detail->sandbox}, {"why", detail->why}};
    more["last_error"] = detail->last_error;
    more["last_error_time"] = whole(detail->last_error_time);
    more["last_save"] = whole(detail->last_save);
    out.body.resize(out.body.rfind('}'));
    out.body += ',' + json::serialize(more).substr(1) + '\n';
    co_return out;
}

Task<Result<Response>> create_vtpm(Call call) {
    auto uuid = uuid_of(call.body, "uuid");
    if (!uuid) {
        co_return uuid.error();
    }
    if (*uuid && (*uuid)->is_nil()) {
        co_return make_error(Errc::usage, "uuid: the nil UUID names no vTPM");
    }
    const std::string_view version = text_of(call.body, "tpm_version", "2.0");
    if (version != "1.2" && version != "2.0") {
        co_return make_error(Errc::usage, "tpm_version: expected \"1.2\" or \"2.0\", found \"{}\"", printable(version));
    }
    auto group = uuid_of(call.body, "group");
    if (!group) {
        co_return group.error();
    }
    auto user = user_of(call.body);
    if (!user) {
        co_return user.error();
    }
    manager::NewVtpm request{.uuid = uuid->value_or(random_uuid()),
                             .version = version == "1.2" ? TpmVersion::tpm12 : TpmVersion::tpm20,
                             .group = *group,
                             .name = std::string(text_of(call.body, "name", "")),
                             .user = *user};
    auto made = co_await call.control.create(std::move(request));
    if (!made) {
        co_return made.error();
    }
    co_return vtpm_answer(201, *made);
}

Task<Result<Response>> delete_vtpm(Call call) {
    auto removed = co_await call.control.remove(call.uuid);
    if (!removed) {
        co_return removed.error();
    }
    co_return answer(200, json::object{{"uuid", to_string(call.uuid)}, {"deleted", true}});
}

Task<Result<Response>> reset_vtpm(Call call) {
    auto reset = co_await call.control.reset(call.uuid);
    if (!reset) {
        co_return reset.error();
    }
    co_return co_await show_vtpm(std::move(call));
}

Task<Result<Response>> get_seal(Call call) {
    auto seal = co_await call.control.seal();
    if (!seal) {
        co_return seal.error();
    }
    co_return answer(200, json::object{{"selection", seal->selection}, {"pcrs", pcrs_json(seal->pcrs)}});
}

Task<Result<Response>> get_freshness(Call call) {
    const manager::FreshnessInfo f = call.control.freshness();
    co_return answer(200, json::object{{"policy", f.policy},
                                       {"counter", whole(f.counter)},
                                       {"steps", whole(f.steps)},
                                       {"failures", whole(f.failures)},
                                       {"owed", f.owed}});
}

Task<Result<Response>> get_description(Call call);

Task<Result<Response>> get_metrics(Call call) {
    co_return Response{.status = 200,
                       .body = metrics_text(call.control.metrics()),
                       .content_type = "text/plain; version=0.0.4; charset=utf-8"};
}

constexpr Field create_fields[] = {
    {"uuid", "string", false, "the new vTPM's; one is made up if it is left out"},
    {"name", "string", false,
     "what its operator calls it: 1 to 64 bytes of printable UTF-8, no UUID, not unique (an XSM label is another "
     "thing)"},
    {"tpm_version", "string", false, "1.2 or 2.0 (the default)"},
    {"user", "string", false,
     "name or number of the user of this host who may open it, besides root and the manager's own (the default: "
     "nobody)"},
    {"group", "string", false, "the UUID of the group that it is made in; the store's own if it is left out"},
};

constexpr Field list_query[] = {
    {"name", "string", false, "only those with this name"},
    {"group", "string", false, "only those of this group, by its UUID"},
};

std::vector<Route> all_routes() {
    std::vector<Route> all{
        {{"GET", "/v1/host", "The manager, its store and its hardware TPM", {}}, get_host},
        {{"GET", "/v1/vtpms", "All vTPMs", {}, list_query}, list_vtpms},
        {{"POST", "/v1/vtpms", "Registers a new vTPM", create_fields}, create_vtpm},
        {{"GET",
          "/v1/vtpms/{uuid}",
          "One vTPM: its state, process, image, socket, last save, and why it does not run",
          {}},
         show_vtpm},
        {{"DELETE", "/v1/vtpms/{uuid}", "Deletes a vTPM for good, leaving a tombstone", {}}, delete_vtpm},
        {{"POST", "/v1/vtpms/{uuid}/reset", "Resets it to factory: its next start makes a fresh TPM", {}}, reset_vtpm},
        {{"GET", "/v1/seal", "What the store is sealed to, and the PCRs as they are", {}}, get_seal},
        {{"GET", "/v1/freshness", "Rollback protection and the wear of the counter", {}}, get_freshness},
        {{"GET", "/metrics", "Figures in Prometheus' text format", {}}, get_metrics},
        {{"GET", "/openapi.json", "This description (OpenAPI 3.0)", {}}, get_description},
    };
    for (const std::vector<Route>& more :
         {edit_routes(), power_routes(), top_routes(), quote_routes(), group_routes(), backup_routes()}) {
        all.insert(all.end(), more.begin(), more.end());
    }
    return all;
}

const std::vector<Route>& table() {
    static const std::vector<Route> all = all_routes();
    return all;
}

json::object describe(const RouteInfo& route) {
    json::object refusal{{"description", "code, message, and action: what to do about it"}};
    json::object o{
        {"summary", route.summary},
        {"responses", json::object{{"2XX", json::object{{"description", "Done"}}}, {"default", std::move(refusal)}}}};
    json::array parameters;
    if (const std::size_t hole = route.path.find('{'); hole != std::string_view::npos) {
        const std::string_view name = route.path.substr(hole + 1, route.path.find('}') - hole - 1);
        parameters.push_back(json::object{
            {"name", name}, {"in", "path"}, {"required", true}, {"schema", json::object{{"type", "string"}}}});
    }
    for (const Field& f : route.query) {
        parameters.push_back(json::object{{"name", f.name},
                                          {"in", "query"},
                                          {"required", f.required},
                                          {"description", f.help},
                                          {"schema", json::object{{"type", f.type}}}});
    }
    if (!parameters.empty()) {
        o["parameters"] = std::move(parameters);
    }
    if (!route.fields.empty()) {
        json::object properties;
        json::array required;
        for (const Field& f : route.fields) {
            properties[f.name] = json::object{{"type", f.type}, {"description", f.help}};
            if (f.required) {
                required.emplace_back(f.name);
            }
        }
        json::object schema{{"type", "object"}, {"additionalProperties", false}, {"properties", std::move(properties)}};
        if (!required.empty()) {
            schema["required"] = std::move(required);
        }
        json::object content{{"application/json", json::object{{"schema", std::move(schema)}}}};
        o["requestBody"] = json::object{{"content", std::move(content)}};
    } else if (route.octets) {
        json::object bytes{{"type", "string"}, {"format", "binary"}};
        json::object content{{"application/octet-stream", json::object{{"schema", std::move(bytes)}}}};
        o["requestBody"] = json::object{{"content", std::move(content)}};
    }
    return o;
}

/// Made from the table that requests are served by, so it cannot say anything else.
Task<Result<Response>> get_description(Call call) {
    json::object paths;
    for (const Route& route : table()) {
        std::string method(route.info.method);
        std::ranges::transform(method, method.begin(), [](char c) { return static_cast<char>(c | 0x20); });
        json::value& path = paths[route.info.path];
        if (!path.is_object()) {
            path = json::object{};
        }
        path.get_object()[method] = describe(route.info);
    }
    json::object info{{"title", "vtpmd"}, {"version", call.control.host().version}};
    co_return answer(200, json::object{{"openapi", "3.0.3"}, {"info", std::move(info)}, {"paths", std::move(paths)}});
}

/// Whether `path` has the form; the text in the place of {uuid}, if there is one.
std::optional<std::string_view> match(std::string_view form, std::string_view path) {
    const std::size_t hole = form.find('{');
    if (hole == std::string_view::npos) {
        return form == path ? std::optional(std::string_view()) : std::nullopt;
    }
    const std::string_view before = form.substr(0, hole);
    const std::string_view after = form.substr(form.find('}') + 1);
    if (!path.starts_with(before) || !path.ends_with(after) || path.size() <= before.size() + after.size()) {
        return std::nullopt;
    }
    const std::string_view middle = path.substr(before.size(), path.size() - before.size() - after.size());
    return middle.find('/') == std::string_view::npos ? std::optional(middle) : std::nullopt;
}

Result<json::object> parse_body(std::string_view text, std::span<const Field> fields) {
    json::object body;
    if (text.find_first_not_of(" \t\r\n") != std::string_view::npos) {
        boost::system::error_code ec;
        json::value parsed = json::parse(text, ec);
        if (ec) {
            return make_error(Errc::usage, "the body is not JSON: {}", ec.message());
        }
        if (!parsed.is_object()) {
            return make_error(Errc::usage, "the body is no JSON object; expected {{...}}");
        }
        body = std::move(parsed.get_object());
    }
    for (const auto& member : body) {
        const auto field = std::ranges::find(fields, std::string_view(member.key()), &Field::name);
        if (field == fields.end()) {
            std::string known;
            for (const Field& f : fields) {
                known += fmt::format("{}{}", known.empty() ? "" : ", ", f.name);
            }
            return make_error(Errc::usage, "unknown field \"{}\"; known here: {}",
                              printable(std::string_view(member.key())), known.empty() ? "none" : known);
        }
        if (!is_of_type(member.value(), field->type)) {
            return make_error(Errc::usage, "{}: expected a{} {}, found {}", field->name,
                              field->type.starts_with('i') ? "n" : "", field->type,
                              std::string_view(json::to_string(member.value().kind())));
        }
    }
    for (const Field& f : fields) {
        if (f.required && !body.contains(f.name)) {
            return make_error(Errc::usage, "the field \"{}\" is missing: {}", f.name, f.help);
        }
    }
    return body;
}

Task<Response> run_route(const Route& route, Call call) {
    auto outcome = co_await route.handler(std::move(call));
    if (!outcome) {
        co_return error_response(outcome.error());
    }
    co_return std::move(*outcome);
}

Response error_body(unsigned status, std::string_view code, std::string_view message, std::string_view action) {
    return answer(status, json::object{{"code", code}, {"message", message}, {"action", action}});
}

} // namespace

Response vtpm_answer(unsigned status, const VtpmInfo& v) {
    Response out{.status = status};
    add_json(out.body, v);
    out.body += '\n';
    return out;
}

Response answer(unsigned status, const json::value& body) {
    return {.status = status, .body = json::serialize(body) + "\n"};
}

json::array pcrs_json(const std::vector<manager::PcrInfo>& pcrs) {
    json::array out;
    for (const manager::PcrInfo& p : pcrs) {
        out.push_back(json::object{{"bank", p.bank}, {"index", p.index}, {"value", p.value}});
    }
    return out;
}

std::string_view text_of(const json::object& body, std::string_view name, std::string_view fallback) {
    const json::value* v = body.if_contains(name);
    return v != nullptr ? std::string_view(v->get_string()) : fallback;
}

Result<Bytes> bytes_of(const json::object& body, std::string_view name) {
    auto bytes = from_hex(text_of(body, name, ""));
    if (!bytes) {
        return in_context(bytes.error(), name);
    }
    return bytes;
}

Response host_answer(const manager::HostInfo& h) {
    return answer(200, json::object{{"version", h.version},
                                    {"store", h.store},
                                    {"store_uuid", to_string(h.store_uuid)},
                                    {"tpm", h.tpm},
                                    {"vtpms", whole(h.vtpms)},
                                    {"open", whole(h.open)},
                                    {"tombstones", whole(h.tombstones)},
                                    {"store_bytes", whole(h.store_bytes)},
                                    {"store_bytes_used", whole(h.store_bytes_used)},
                                    {"store_bytes_reserved", whole(h.store_bytes_reserved)},
                                    {"trouble", h.trouble}});
}

Result<std::optional<Uuid>> uuid_of(const json::object& fields, std::string_view name) {
    if (!fields.contains(name)) {
        return std::optional<Uuid>();
    }
    auto uuid = parse_uuid(text_of(fields, name, ""));
    if (!uuid) {
        return in_context(uuid.error(), name);
    }
    return std::optional(*uuid);
}

Result<std::uint32_t> user_of(const json::object& fields) {
    const std::string name(text_of(fields, "user", ""));
    if (name.empty()) {
        return std::uint32_t{0};
    }
    const auto user = find_user(name);
    if (!user) {
        return make_error(Errc::usage, "user: this host has no user '{}'", printable(name));
    }
    return static_cast<std::uint32_t>(*user);
}

std::vector<RouteInfo> routes() {
    std::vector<RouteInfo> out;
    for (const Route& r : table()) {
        out.push_back(r.info);
    }
    return out;
}

Response error_response(const Error& e) {
    const ErrorKind kind = kind_of(e.code);
    return error_body(kind.status, kind.code, e.message, kind.action);
}

Response transport_error(unsigned status, std::string_view message) {
    switch (status) {
    case 408:
        return error_body(status, "timed_out", message, "send requests faster, or ask for less at once");
    case 413:
        return error_body(status, "too_large", message, "send less");
    case 431:
        return error_body(status, "too_large", message, "send fewer or shorter headers");
    case 503:
        return error_body(status, "unavailable", message, "close connections that are not needed, and try again");
    case 403:
        return error_body(status, "forbidden", message,
                          "ask as root, or as a member of --api-group or --api-read-group");
    default:
        return error_body(status, "bad_request", message, "send HTTP/1.1 with a JSON body");
    }
}

std::size_t limit_of_body(std::string_view method, std::string_view target) {
    const bool large = std::ranges::any_of(
        table(), [&](const Route& r) { return r.info.octets && r.info.method == method && r.info.path == target; });
    return large ? copy_limit : body_limit;
}

Task<Response> handle(Control& control, Request request) {
    const std::string_view path = std::string_view(request.target).substr(0, request.target.find('?'));
    std::string allow;
    const Route* found = nullptr;
    std::string_view hole;
    for (const Route& r : table()) {
        auto matched = match(r.info.path, path);
        if (!matched) {
            continue;
        }
        allow += fmt::format("{}{}", allow.empty() ? "" : ", ", r.info.method);
        if (r.info.method == request.method) {
            found = &r;
            hole = *matched;
        }
    }
    if (found == nullptr && allow.empty()) {
        co_return error_body(404, "no_such_path", fmt::format("there is nothing at {}", printable(path)),
                             "vtpmctl(1) and GET /openapi.json say what there is");
    }
    if (found == nullptr) {
        Response r = error_body(405, "no_such_method",
                                fmt::format("{} does not take {}", printable(path), printable(request.method)),
                                fmt::format("use one of: {}", allow));
        r.allow = std::move(allow);
        co_return r;
    }
    if (found->changes() && !request.may_change) {
        Error e = make_error(Errc::permission, "your group may look, not change");
        co_return error_response(e);
    }
    Call call{.control = control, .uuid = {}, .may_change = request.may_change, .body = {}};
    if (path.size() != request.target.size()) {
        auto query = parse_query(std::string_view(request.target).substr(path.size() + 1), found->info.query);
        if (!query) {
            co_return error_response(query.error());
        }
        call.query = std::move(*query);
    }
    if (!hole.empty()) {
        auto uuid = parse_uuid(hole);
        if (!uuid) {
            co_return error_response(uuid.error());
        }
        call.uuid = *uuid;
    }
    if (found->info.octets) {
        call.octets = to_bytes(as_bytes(request.body));
        request.body = {};
    }
    auto body = parse_body(request.body, found->info.fields);
    if (!body) {
        co_return error_response(body.error());
    }
    call.body = std::move(*body);
    co_return co_await run_route(*found, std::move(call));
}

} // namespace vtpmd::api
