// The one place where an Error becomes an HTTP status, a name for programs and advice for people.
#pragma once

#include "util/result.hpp"

namespace vtpmd::api {

struct ErrorKind {
    unsigned status;
    std::string_view code;
    std::string_view action; ///< what to do about it
};
[[nodiscard]] ErrorKind kind_of(Errc code) noexcept;

} // namespace vtpmd::api
