#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm {

// Byte-level BPE spells the 256 bytes as letters: 33-126, 161-172 and 174-255 as themselves, the
// other 68 in order as U+0100 and on.
char32_t LetterOfByte(uint8_t byte);

// The bytes that `token` (valid UTF-8) spells; nullopt if it holds another character.
std::optional<std::string> BytesOfLetters(absl::string_view token);

}  // namespace isotherm
