#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ISOTHERM_MACRO_CONCAT_INNER(a, b) a##b
#define ISOTHERM_MACRO_CONCAT(a, b) ISOTHERM_MACRO_CONCAT_INNER(a, b)

// NOLINTBEGIN(bugprone-macro-parentheses): names of variables, and a declaration as `lhs`.

// Leaves the function with the status of `expression` unless it is OK.
#define ISOTHERM_RETURN_IF_ERROR(expression) \
  ISOTHERM_RETURN_IF_ERROR_IMPL(ISOTHERM_MACRO_CONCAT(isotherm_status_, __LINE__), expression)

#define ISOTHERM_RETURN_IF_ERROR_IMPL(status, expression)   \
  do {                                                      \
    if (absl::Status status = (expression); !status.ok()) { \
      return status;                                        \
    }                                                       \
  } while (false)

// ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, CheckedMul(rows, row_bytes));
#define ISOTHERM_ASSIGN_OR_RETURN(lhs, expression)                                         \
  ISOTHERM_ASSIGN_OR_RETURN_IMPL(ISOTHERM_MACRO_CONCAT(isotherm_statusor_, __LINE__), lhs, \
                                 expression)

#define ISOTHERM_ASSIGN_OR_RETURN_IMPL(statusor, lhs, expression) \
  auto statusor = (expression);                                   \
  if (!statusor.ok()) return std::move(statusor).status();        \
  lhs = *std::move(statusor)
// NOLINTEND(bugprone-macro-parentheses)
