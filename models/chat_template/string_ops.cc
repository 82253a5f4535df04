#include "models/chat_template/string_ops.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "models/tokenizer/char_class.h"
#include "models/tokenizer/utf8.h"

namespace isotherm::chat {
namespace {

bool IsSpace(char32_t c) {
  // Python counts the four separators below U+0020 as white space, Unicode does not.
  return (c >= 0x1C && c <= 0x1F) || CharClassTable::Get()[c] == CharClass::kSpace;
}

// Offset of the character that ends before `end`.
size_t Previous(absl::string_view bytes, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<uint8_t>(bytes[end]) & 0xC0) == 0x80);
  return end;
}

bool InSet(absl::string_view set, char32_t wanted) {
  for (size_t at = 0; at < set.size();) {
    const Utf8Char c = DecodeValidUtf8(set, at);
    if (c.code_point == wanted) return true;
    at += c.bytes;
  }
  return false;
}

}  // namespace

Text Strip(const Text& text, const Text* characters, StripSide side) {
  const absl::string_view bytes = text.bytes();
  const absl::string_view set = characters == nullptr ? "" : characters->bytes();
  const auto strips = [&](size_t at) {
    const char32_t c = DecodeValidUtf8(bytes, at).code_point;
    return characters == nullptr ? IsSpace(c) : InSet(set, c);
  };
  size_t begin = 0;
  size_t end = bytes.size();
  if (side != StripSide::kRight) {
    while (begin < end && strips(begin)) begin += DecodeValidUtf8(bytes, begin).bytes;
  }
  if (side != StripSide::kLeft) {
    while (end > begin && strips(Previous(bytes, end))) end = Previous(bytes, end);
  }
  return text.Range(begin, end);
}

Text Upper(const Text& text) { return text.Mapped(absl::ascii_toupper); }
Text Lower(const Text& text) { return text.Mapped(absl::ascii_tolower); }

Text Capitalize(const Text& text) {
  bool first = true;
  return text.Mapped([&](char c) {
    return std::exchange(first, false) ? absl::ascii_toupper(c) : absl::ascii_tolower(c);
  });
}

Text Title(const Text& text) {
  bool in_word = false;
  return text.Mapped([&](char c) {
    const bool letter = absl::ascii_isalpha(c) || static_cast<uint8_t>(c) >= 0x80;
    const char mapped = in_word ? absl::ascii_tolower(c) : absl::ascii_toupper(c);
    in_word = letter;
    return mapped;
  });
}

Text Replace(RenderContext& context, const Text& text, const Text& from, const Text& to,
             int64_t count) {
  Text out;
  size_t at = 0;
  if (from.empty()) {
    // Between all characters, as Python does.
    for (; count != 0; --count) {
      if (!context.Charge(to.size() + 1)) return {};
      out.Append(to);
      if (at == text.size()) return out;
      const size_t end = at + DecodeValidUtf8(text.bytes(), at).bytes;
      out.AppendRange(text, at, end);
      at = end;
    }
  }
  while (count != 0) {
    const size_t found = text.bytes().find(from.bytes(), at);
    if (found == absl::string_view::npos) break;
    if (!context.Charge(to.size() + 1)) return {};
    out.AppendRange(text, at, found);
    out.Append(to);
    at = found + from.size();
    if (count > 0) --count;
  }
  out.AppendRange(text, at, text.size());
  return out;
}

Value Split(RenderContext& context, const Text& text, const Text* separator, int64_t max_splits,
            bool from_right) {
  const absl::string_view bytes = text.bytes();
  if (separator != nullptr && separator->empty()) return context.Fail("empty separator");
  std::vector<Value> parts;
  const auto add = [&](size_t begin, size_t end) {
    if (context.Charge(64)) parts.push_back(MakeText(text.Range(begin, end)));
  };
  if (separator == nullptr) {
    if (from_right) return context.Fail("rsplit needs a separator");
    size_t at = 0;
    while (!context.failed()) {
      while (at < bytes.size() && IsSpace(DecodeValidUtf8(bytes, at).code_point)) {
        at += DecodeValidUtf8(bytes, at).bytes;
      }
      if (at == bytes.size()) break;
      const size_t begin = at;
      if (max_splits == 0) {
        const Text rest = Strip(text.Range(begin, bytes.size()), nullptr, StripSide::kRight);
        parts.push_back(MakeText(rest));
        break;
      }
      while (at < bytes.size() && !IsSpace(DecodeValidUtf8(bytes, at).code_point)) {
        at += DecodeValidUtf8(bytes, at).bytes;
      }
      add(begin, at);
      if (max_splits > 0) --max_splits;
    }
  } else if (from_right) {
    size_t end = bytes.size();
    while (max_splits != 0 && !context.failed() && end >= separator->size()) {
      const size_t found = bytes.rfind(separator->bytes(), end - separator->size());
      if (found == absl::string_view::npos) break;
      add(found + separator->size(), end);
      end = found;
      if (max_splits > 0) --max_splits;
    }
    add(0, end);
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t at = 0;
    while (max_splits != 0 && !context.failed()) {
      const size_t found = bytes.find(separator->bytes(), at);
      if (found == absl::string_view::npos) break;
      add(at, found);
      at = found + separator->size();
      if (max_splits > 0) --max_splits;
    }
    add(at, bytes.size());
  }
  return context.MakeList(std::move(parts));
}

Value SplitLines(RenderContext& context, const Text& text) {
  const absl::string_view bytes = text.bytes();
  std::vector<Value> lines;
  for (size_t at = 0; at < bytes.size() && context.Charge(64);) {
    const size_t end = std::min(bytes.find_first_of("\r\n", at), bytes.size());
    lines.push_back(MakeText(text.Range(at, end)));
    at = end + (bytes.substr(end, 2) == "\r\n" ? 2 : 1);
  }
  return context.MakeList(std::move(lines));
}

int64_t CountCharacters(absl::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

}  // namespace isotherm::chat
