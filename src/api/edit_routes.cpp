// What can be changed of a vTPM that is there: its name, and its group as long as it has saved nothing.
#include "api/handlers.hpp"

namespace vtpmd::api {

namespace {

Task<Result<Response>> edit_vtpm(Call call) {
    if (call.body.empty()) {
        co_return make_error(Errc::usage, "say what to change: name, user, group, autostart");
    }
    auto group = uuid_of(call.body, "group");
    if (!group) {
        co_return group.error();
    }
    if (call.body.size() > 1) {
        co_return make_error(Errc::usage, "name, user, group and autostart are changed one at a time, so that either "
                                          "is done or not");
    }
    auto user = user_of(call.body);
    if (!user) {
        co_return user.error();
    }
    const boost::json::value* autostart = call.body.if_contains("autostart");
    Task<Result<manager::VtpmInfo>> change =
        autostart != nullptr         ? call.control.autostart(call.uuid, autostart->get_bool())
        : call.body.contains("user") ? call.control.give_to(call.uuid, *user)
        : *group                     ? call.control.move(call.uuid, **group)
                                     : call.control.rename(call.uuid, std::string(text_of(call.body, "name", "")));
    auto changed = co_await std::move(change);
    if (!changed) {
        co_return changed.error();
    }
    co_return vtpm_answer(200, *changed);
}

constexpr Field edit_fields[] = {
    {"name", "string", false, "its new name (POST /v1/vtpms); empty takes it away"},
    {"user", "string", false, "who may open it from now on (POST /v1/vtpms); empty: root and the manager only; alone"},
    {"group", "string", false, "the UUID of another group, as long as it has saved nothing; alone"},
    {"autostart", "boolean", false, "whether it runs whenever the manager does; nothing is started or stopped now"},
};

} // namespace

std::vector<Route> edit_routes() {
    return {
        {{"PATCH", "/v1/vtpms/{uuid}", "Renames a vTPM, or moves one that has saved nothing", edit_fields}, edit_vtpm}};
}

} // namespace vtpmd::api
