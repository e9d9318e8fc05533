// What the units that see Boost.JSON share: a call, as its handler gets it, and how it is answered.
#pragma once

#include "api/routes.hpp"

#include <boost/json.hpp>

namespace vtpmd::api {

struct Call {
    manager::Control& control;
    Uuid uuid;               ///< of the path, if it has one
    bool may_change = false; ///< the peer is no mere reader
    boost::json::object body;
    boost::json::object query = {}; ///< strings
    Bytes octets = {};              ///< the body, of a route that takes bytes
};
using Handler = Task<Result<Response>> (*)(Call);

struct Route {
    RouteInfo info;
    Handler handler;
    [[nodiscard]] bool changes() const { return info.method != "GET"; }
};

[[nodiscard]] Response answer(unsigned status, const boost::json::value& body);
[[nodiscard]] inline boost::json::value whole(std::uint64_t n) { return boost::json::value(n); }
[[nodiscard]] boost::json::array pcrs_json(const std::vector<manager::PcrInfo>& pcrs);
/// Of a body whose fields were checked.
[[nodiscard]] std::string_view text_of(const boost::json::object& body, std::string_view name,
                                       std::string_view fallback);
/// Of a field in hexadecimal; empty if it is not there.
[[nodiscard]] Result<Bytes> bytes_of(const boost::json::object& body, std::string_view name);

/// Of a field or parameter that names something by its UUID; nullopt if it is not there.
[[nodiscard]] Result<std::optional<Uuid>> uuid_of(const boost::json::object& fields, std::string_view name);

/// Of the field "user": a user of this host by name or number; 0 if it is not there, or empty. Errc::usage.
[[nodiscard]] Result<std::uint32_t> user_of(const boost::json::object& fields);

/// Deep quotes for the operator (quote_routes.cpp).
[[nodiscard]] std::vector<Route> quote_routes();
/// A live view (top_routes.cpp).
[[nodiscard]] std::vector<Route> top_routes();
/// What is there for groups (group_routes.cpp).
[[nodiscard]] std::vector<Route> group_routes();
/// Of one vTPM.
[[nodiscard]] Response vtpm_answer(unsigned status, const manager::VtpmInfo& v);
/// And for changes of a vTPM (edit_routes.cpp).
[[nodiscard]] std::vector<Route> edit_routes();
/// Its instance (power_routes.cpp).
[[nodiscard]] std::vector<Route> power_routes();
/// Of the manager.
[[nodiscard]] Response host_answer(const manager::HostInfo& h);
/// And for the store itself (backup_routes.cpp).
[[nodiscard]] std::vector<Route> backup_routes();

} // namespace vtpmd::api
