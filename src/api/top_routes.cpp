// A live view over HTTP: what vtpmctl top shows.
#include "api/handlers.hpp"

namespace vtpmd::api {

namespace {

namespace json = boost::json;

constexpr std::size_t row_limit = 100;

Task<Result<Response>> get_top(Call call) {
    const manager::ActivityInfo a = call.control.activity(row_limit);
    json::array rows;
    for (const manager::Activity& v : a.busiest) {
        rows.push_back(json::object{{"uuid", to_string(v.uuid)},
                                    {"state", to_string(v.state)},
                                    {"commands_per_second", v.commands_per_second},
                                    {"commands", whole(v.commands)},
                                    {"failures", whole(v.failures)},
                                    {"commits", whole(v.commits)}});
    }
    co_return answer(200, json::object{{"vtpms", whole(a.vtpms)},
                                       {"open", whole(a.open)},
                                       {"guest_commands", whole(a.guest_commands)},
                                       {"guest_commits", whole(a.guest_commits)},
                                       {"hardware_commands", whole(a.hardware_commands)},
                                       {"urgent_waiting", whole(a.urgent_waiting)},
                                       {"routine_waiting", whole(a.routine_waiting)},
                                       {"journal_waiting", whole(a.journal_waiting)},
                                       {"freshness_counter", whole(a.freshness_counter)},
                                       {"freshness_steps", whole(a.freshness_steps)},
                                       {"busiest", std::move(rows)}});
}

} // namespace

std::vector<Route> top_routes() {
    return {
        {{"GET", "/v1/top", "The queues, and of the vTPMs that are open the 100 busiest", {}}, get_top},
    };
}

} // namespace vtpmd::api
