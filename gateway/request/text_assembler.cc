#include "gateway/request/text_assembler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";

bool IsContinuation(unsigned char c) { return (c & 0xC0) == 0x80; }

// Bytes of the character that `lead` begins; 0: none does.
size_t CharacterBytes(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// Second bytes that would make an overlong form, a surrogate or a code point past U+10FFFF.
bool SecondByteFits(unsigned char lead, unsigned char second) {
  switch (lead) {
    case 0xE0:
      return second >= 0xA0;
    case 0xED:
      return second <= 0x9F;
    case 0xF0:
      return second >= 0x90;
    case 0xF4:
      return second <= 0x8F;
    default:
      return true;
  }
}

// Moves whole characters from `bytes` to `out`, each maximal broken part as one U+FFFD. What may
// still become a character stays.
void MoveWholeCharacters(std::string& bytes, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    const size_t wanted = CharacterBytes(lead);
    size_t have = std::min<size_t>(1, wanted);
    while (have < wanted && at + have < bytes.size()) {
      const auto next = static_cast<unsigned char>(bytes[at + have]);
      if (!IsContinuation(next) || (have == 1 && !SecondByteFits(lead, next))) break;
      ++have;
    }
    if (wanted > 0 && have == wanted) {
      out.append(bytes, at, wanted);
      at += wanted;
    } else if (wanted > 0 && at + have == bytes.size()) {
      break;  // the rest may come
    } else {
      absl::StrAppend(&out, kReplacement);
      at += std::max<size_t>(1, have);
    }
  }
  bytes.erase(0, at);
}

}  // namespace

TextAssembler::TextAssembler(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {}

TextAssembler::Output TextAssembler::Append(absl::string_view bytes, bool may_stop) {
  absl::StrAppend(&partial_, bytes);
  MoveWholeCharacters(partial_, held_);
  Output output;
  if (!may_stop) {
    output.text = std::exchange(held_, {});
    return output;
  }
  size_t best_end = std::string::npos;
  size_t best_begin = 0;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < best_end || (end == best_end && begin < best_begin)) {
      best_end = end;
      best_begin = begin;
    }
  }
  if (best_end != std::string::npos) {
    output.matched_stop = held_.substr(best_begin, best_end - best_begin);
    output.text = held_.substr(0, include_stop_ ? best_end : best_begin);
    held_.clear();
    partial_.clear();
    return output;
  }
  const size_t keep = HeldSuffix();
  output.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return output;
}

// Length of the longest end of held_ that begins a stop string. It never cuts a character: stop
// strings are whole characters, and so is held_.
size_t TextAssembler::HeldSuffix() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    const size_t limit = std::min(held_.size(), stop.size() - 1);
    for (size_t length = limit; length > longest; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) longest = length;
    }
  }
  return longest;
}

std::string TextAssembler::Finish() {
  partial_.clear();
  return std::exchange(held_, {});
}

}  // namespace isotherm
