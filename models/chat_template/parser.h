#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "models/chat_template/ast.h"
#include "models/chat_template/lexer.h"

namespace isotherm::chat {

// Builds the tree of a template. InvalidArgument names the line and what was wanted; nesting
// beyond kMaxTreeDepth is refused, so neither this nor any later walk can run out of stack.
absl::StatusOr<Body> ParseTemplate(std::vector<Token> tokens);

}  // namespace isotherm::chat
