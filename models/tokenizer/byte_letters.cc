#include "models/tokenizer/byte_letters.h"

#include <array>

#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr int kNumShifted = 68;

struct Letters {
  std::array<char32_t, 256> letter_of{};
  std::array<int16_t, 256 + kNumShifted> byte_of{};
};

constexpr Letters MakeLetters() {
  Letters letters;
  for (int16_t& byte : letters.byte_of) byte = -1;
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    const char32_t letter = itself ? static_cast<char32_t>(byte) : next++;
    letters.letter_of[byte] = letter;
    letters.byte_of[letter] = static_cast<int16_t>(byte);
  }
  return letters;
}
constexpr Letters kLetters = MakeLetters();

}  // namespace

char32_t LetterOfByte(uint8_t byte) { return kLetters.letter_of[byte]; }

std::optional<std::string> BytesOfLetters(absl::string_view token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const Utf8Char c = DecodeValidUtf8(token, at);
    if (c.code_point >= kLetters.byte_of.size() || kLetters.byte_of[c.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kLetters.byte_of[c.code_point]));
    at += c.bytes;
  }
  return bytes;
}

}  // namespace isotherm
