// doctest, and how it prints our results: REQUIRE(result) shows the error's message when it fails.
#pragma once

#include "util/result.hpp"

#include <doctest/doctest.h>

namespace doctest {
template <typename T>
struct StringMaker<boost::system::result<T, vtpmd::Error>> {
    static String convert(const boost::system::result<T, vtpmd::Error>& r) {
        return r.has_value() ? String("ok") : String(("error: " + r.error().message).c_str());
    }
};
} // namespace doctest
