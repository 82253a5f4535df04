#pragma once

#include "absl/strings/string_view.h"
#include "models/chat_template/render_context.h"
#include "models/chat_template/text.h"

namespace isotherm::chat {

// String operations of Python that filters and methods share. The caller has charged the text's
// size once; what can grow is charged here.
enum class StripSide { kBoth, kLeft, kRight };
// `characters`: the set to strip; null means white space.
Text Strip(const Text& text, const Text* characters, StripSide side);
Text Upper(const Text& text);
Text Lower(const Text& text);
Text Capitalize(const Text& text);
Text Title(const Text& text);
// At most `count` replacements from the left; negative: all.
Text Replace(RenderContext& context, const Text& text, const Text& from, const Text& to,
             int64_t count);
// At most `max_splits` cuts; negative: all. `separator` null: runs of white space.
Value Split(RenderContext& context, const Text& text, const Text* separator, int64_t max_splits,
            bool from_right);
Value SplitLines(RenderContext& context, const Text& text);
// What a plain search may cost at worst, in units of the budget.
inline size_t SearchCost(const Text& text, const Text& pattern) {
  return text.size() * (1 + pattern.size() / 16) + pattern.size();
}
int64_t CountCharacters(absl::string_view bytes);

}  // namespace isotherm::chat
