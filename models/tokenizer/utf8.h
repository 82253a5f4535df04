#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm {

// One decoded character. `bytes` is 0 only at the end of the text.
struct Utf8Char {
  char32_t code_point = 0;
  uint32_t bytes = 0;
};

// The character at `position` of text that is known to be valid UTF-8.
inline Utf8Char DecodeValidUtf8(absl::string_view text, size_t position) {
  if (position >= text.size()) return {};
  const auto at = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  const uint32_t lead = at(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (at(1) & 0x3Fu), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (at(1) & 0x3Fu) << 6 | (at(2) & 0x3Fu), 3};
  return {(lead & 0x07) << 18 | (at(1) & 0x3Fu) << 12 | (at(2) & 0x3Fu) << 6 | (at(3) & 0x3Fu), 4};
}

// What stands at the start of untrusted bytes.
enum class Utf8Status {
  kValid,       // a whole character of `length` bytes
  kIncomplete,  // all `length` bytes begin a character whose rest is missing
  kInvalid,     // the first `length` bytes can begin no character (overlong, surrogate, stray)
};
struct Utf8Prefix {
  Utf8Status status;
  size_t length;
};
// `bytes` must not be empty.
Utf8Prefix ClassifyUtf8(absl::string_view bytes);

// Offset of the first byte that is not valid UTF-8, or npos.
size_t FindInvalidUtf8(absl::string_view text);

void AppendUtf8(char32_t code_point, std::string& out);

// Copies `bytes`, with one U+FFFD for each ill-formed sequence (the maximal-subpart rule).
std::string ReplaceInvalidUtf8(absl::string_view bytes);

}  // namespace isotherm
