#include "models/tokenizer/char_class.h"

#include <algorithm>

#include "common/base/check.h"

namespace isotherm {
namespace {

struct Range {
  char32_t first;
  char32_t last;
  CharClass char_class;
};
constexpr Range kRanges[] = {
#include "models/tokenizer/unicode_tables.inc"
};

}  // namespace

const CharClassTable& CharClassTable::Get() {
  static const CharClassTable& table = *new CharClassTable();
  return table;
}

CharClassTable::CharClassTable() {
  size_t num_pages = 0;
  size_t range = 0;
  for (char32_t start = 0; start < kCodePoints; start += kPageSize) {
    std::array<CharClass, kPageSize> page{};
    while (range < std::size(kRanges) && kRanges[range].last < start) ++range;
    for (size_t r = range; r < std::size(kRanges) && kRanges[r].first < start + kPageSize; ++r) {
      const char32_t first = std::max(kRanges[r].first, start);
      const char32_t last = std::min<char32_t>(kRanges[r].last, start + kPageSize - 1);
      for (char32_t c = first; c <= last; ++c) page[c - start] = kRanges[r].char_class;
    }
    const auto known = std::find(pages_.begin(), pages_.begin() + num_pages, page);
    const size_t index = known - pages_.begin();
    if (index == num_pages) {
      ISOTHERM_CHECK(num_pages < kMaxPages);
      pages_[num_pages++] = page;
    }
    page_of_[start >> kPageBits] = static_cast<uint8_t>(index);
  }
}

}  // namespace isotherm
