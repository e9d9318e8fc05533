// How many of a test's points are tried.
#pragma once

#include <cstddef>

namespace vtpmd::test {

/// The step between two points (operations of a disk, bytes of an image) of a test that tries each in turn. The sanitized
/// build takes ten times as long and looks for other faults than the plain builds, which try them all: it takes every
/// third.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t every = 3;
#else
constexpr std::size_t every = 1;
#endif

} // namespace vtpmd::test
