#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::chat {

enum class TokenKind {
  kText,         // template text outside of tags
  kBlockBegin,   // {%
  kBlockEnd,     // %}
  kOutputBegin,  // {{
  kOutputEnd,    // }}
  kName,
  kString,  // text is the decoded value
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// Cuts a template into tokens with trim_blocks and lstrip_blocks on, one final line break dropped,
// and `{%-`, `-%}`, `{%+`, `+%}`, comments and raw blocks applied. InvalidArgument names the line.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace isotherm::chat
