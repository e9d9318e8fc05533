// What management offers over HTTP: a table of methods and paths, each with its handler. Without a socket: a request is text,
// so is its answer (server.cpp brings them together, tests and the fuzzer call handle() itself).
//
// Errors are {"code", "message", "action"}: a name for programs, what happened, and what to do about it.
#pragma once

#include "manager/management/control.hpp"

#include <span>

namespace vtpmd::api {

inline constexpr std::size_t body_limit = 65536;                   ///< bytes; what is larger is 413
inline constexpr std::size_t copy_limit = std::size_t{256} << 20U; ///< of a body that is a copy of the store
inline constexpr std::size_t header_limit = 8192;                  ///< bytes; what is larger is 431

struct Request {
    std::string method;
    std::string target;
    std::string body;
    bool may_change = false; ///< the peer is no mere reader
};

struct Response {
    unsigned status = 200;
    std::string body; ///< JSON, but of /metrics and /v1/backup
    std::string content_type = "application/json";
    std::string allow;                          ///< of 405: the methods that there are
    std::unique_ptr<manager::StoreCopy> stream; ///< the body instead, if there is one
};

/// One field of a request's body.
struct Field {
    std::string_view name;
    std::string_view type; ///< string
    bool required = false;
    std::string_view help;
};

/// What GET /openapi.json describes.
struct RouteInfo {
    std::string_view method;
    std::string_view path; ///< with {uuid}
    std::string_view summary;
    std::span<const Field> fields;
    std::span<const Field> query = {}; ///< parameters behind a question mark
    bool octets = false;               ///< the body is bytes, no JSON
};
[[nodiscard]] std::vector<RouteInfo> routes();

/// Bytes that the body of such a request may have.
[[nodiscard]] std::size_t limit_of_body(std::string_view method, std::string_view target);
/// Any request whatever.
Task<Response> handle(manager::Control& control, Request request);

/// An answer that tells of an error.
[[nodiscard]] Response error_response(const Error& e);
/// 400, 408, 413, 431, 503: what the transport refuses before there is a request.
[[nodiscard]] Response transport_error(unsigned status, std::string_view message);

/// Prometheus' text format 0.0.4.
[[nodiscard]] std::string metrics_text(const std::vector<manager::Metric>& metrics);

} // namespace vtpmd::api
