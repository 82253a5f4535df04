#pragma once

#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace isotherm {

// Arithmetic on numbers that a file, peer or user gave. OutOfRange names the operation that wraps.
template <typename T>
absl::StatusOr<T> CheckedMul(T a, std::type_identity_t<T> b) {
  T out;
  if (__builtin_mul_overflow(a, b, &out)) {
    return absl::OutOfRangeError(
        absl::StrCat(a, " * ", b, " does not fit ", sizeof(T) * 8, " bits"));
  }
  return out;
}

template <typename T>
absl::StatusOr<T> CheckedAdd(T a, std::type_identity_t<T> b) {
  T out;
  if (__builtin_add_overflow(a, b, &out)) {
    return absl::OutOfRangeError(
        absl::StrCat(a, " + ", b, " does not fit ", sizeof(T) * 8, " bits"));
  }
  return out;
}

// `alignment` is a power of two.
template <typename T>
constexpr T RoundUp(T value, std::type_identity_t<T> alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

template <typename T>
absl::StatusOr<T> CheckedRoundUp(T value, std::type_identity_t<T> alignment) {
  auto sum = CheckedAdd<T>(value, alignment - 1);
  if (!sum.ok()) return sum.status();
  return *sum & ~(alignment - 1);
}

template <typename T>
constexpr T CeilDiv(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}

}  // namespace isotherm
