// A vTPM's instance is started and stopped.
#include "api/handlers.hpp"

namespace vtpmd::api {

namespace {

namespace json = boost::json;

constexpr std::int64_t longest_wait = 600;

bool is_set(const json::object& body, std::string_view name) {
    const json::value* v = body.if_contains(name);
    return v != nullptr && v->get_bool();
}

Response shown(const Call& call) {
    auto v = call.control.vtpm(call.uuid);
    return v ? vtpm_answer(200, *v) : answer(200, json::object{{"uuid", to_string(call.uuid)}});
}

Task<Result<Response>> start_vtpm(Call call) {
    manager::StartOrder order{.once = is_set(call.body, "once")};
    if (const json::value* wait = call.body.if_contains("wait")) {
        if (wait->get_int64() < 1 || wait->get_int64() > longest_wait) {
            co_return make_error(Errc::usage, "wait: expected 1 to {} seconds", longest_wait);
        }
        order.wait = std::chrono::seconds(wait->get_int64());
    }
    auto started = co_await call.control.start(call.uuid, order);
    if (!started) {
        co_return started.error();
    }
    co_return shown(call);
}

Task<Result<Response>> stop_vtpm(Call call) {
    auto stopped = co_await call.control.stop(call.uuid, is_set(call.body, "keep_autostart"));
    if (!stopped) {
        co_return stopped.error();
    }
    co_return shown(call);
}

constexpr Field start_fields[] = {
    {"once", "boolean", false, "not again after the manager or the host was restarted (else: until it is stopped)"},
    {"wait", "integer", false, "seconds to wait until it serves its guest; the error says why it does not"},
};
constexpr Field stop_fields[] = {
    {"keep_autostart", "boolean", false, "what was remembered of its start stays: it runs again with the next manager"},
};

} // namespace

std::vector<Route> power_routes() {
    return {
        {{"POST", "/v1/vtpms/{uuid}/start", "Keeps an instance running for it", start_fields}, start_vtpm},
        {{"POST", "/v1/vtpms/{uuid}/stop", "Ends its instance in good order, whoever started it", stop_fields},
         stop_vtpm},
    };
}

} // namespace vtpmd::api
