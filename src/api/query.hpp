// The part of a target behind its question mark: name=value&name=value, percent-encoded (RFC 3986, section 2.1; a plus is a
// plus).
#pragma once

#include "api/routes.hpp"

#include <boost/json.hpp>

namespace vtpmd::api {

/// Errc::usage: a name that is not in `known`, one twice, a value that is not encoded right.
[[nodiscard]] Result<boost::json::object> parse_query(std::string_view query, std::span<const Field> known);

} // namespace vtpmd::api
