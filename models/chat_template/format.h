#pragma once

#include "models/chat_template/render_context.h"
#include "models/chat_template/text.h"
#include "models/chat_template/value.h"

namespace isotherm::chat {

// What {{ value }} prints: Python's str(). Texts keep their marks; all else is trusted.
Text ToText(RenderContext& context, const Value& value);

struct JsonOptions {
  int indent = -1;  // spaces a level; negative: one line, with ", " and ": "
  bool ensure_ascii = false;
  bool sort_keys = false;
};
// Python's json.dumps. Characters of user texts stay the user's, escaped or not.
Text ToJson(RenderContext& context, const Value& value, const JsonOptions& options);

}  // namespace isotherm::chat
