#pragma once

#include <cstdio>
#include <cstdlib>

namespace isotherm::base_internal {
[[noreturn]] inline void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, expression);
  std::fflush(stderr);
  std::abort();
}
}  // namespace isotherm::base_internal

// Aborts when one of our own invariants is broken. Never for what a file, peer, flag or user gave:
// that is an absl::Status.
#define ISOTHERM_CHECK(condition)                                             \
  do {                                                                        \
    if (!(condition)) [[unlikely]] {                                          \
      ::isotherm::base_internal::CheckFailed(#condition, __FILE__, __LINE__); \
    }                                                                         \
  } while (false)
