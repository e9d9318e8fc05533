// How many of a test's points are tried.
#pragma once

#include <cstddef>

namespace vtpmd::test {

/// True in a build with AddressSanitizer, which takes ten times as long.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
constexpr bool sanitized = __has_feature(address_sanitizer);
#else
constexpr bool sanitized = false;
#endif

/// The step between two points (operations of a disk, bytes of an image) of a test that tries each in turn. The sanitized
/// build looks for other faults than the plain builds, which try them all: it takes every third.
constexpr std::size_t every = sanitized ? 3 : 1;

} // namespace vtpmd::test
