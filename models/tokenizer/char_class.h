#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace isotherm {

// What the pre-tokenizers ask of a code point: Unicode categories L, N and P, and White_Space.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kPunctuation, kSpace };

// Two-level table over all of Unicode, built once from unicode_tables.inc; read by any thread.
class CharClassTable {
 public:
  static const CharClassTable& Get();

  // Values above U+10FFFF are kOther.
  CharClass operator[](char32_t code_point) const {
    if (code_point >= kCodePoints) return CharClass::kOther;
    return pages_[page_of_[code_point >> kPageBits]][code_point & (kPageSize - 1)];
  }

 private:
  static constexpr char32_t kCodePoints = 0x110000;
  static constexpr int kPageBits = 8;
  static constexpr size_t kPageSize = size_t{1} << kPageBits;
  // Unicode 16 needs 168 different pages; the build of the table checks that a page number fits.
  static constexpr size_t kMaxPages = 256;

  CharClassTable();

  std::array<uint8_t, (kCodePoints >> kPageBits)> page_of_{};
  std::array<std::array<CharClass, kPageSize>, kMaxPages> pages_{};
};

}  // namespace isotherm
