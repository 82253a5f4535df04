#include "models/tokenizer/spm_encoder.h"

#include <queue>
#include <string>

#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr absl::string_view kSpace = "\xE2\x96\x81";  // U+2581
constexpr uint32_t kNone = UINT32_MAX;

struct Symbol {
  uint32_t begin;
  uint32_t length;  // 0 once joined to its left neighbour
  uint32_t previous;
  uint32_t next;
};

struct Candidate {
  float score;
  uint32_t left;
  uint32_t length;  // of the union; another one means that a neighbour has changed since
  bool operator<(const Candidate& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

std::string EscapeSpaces(absl::string_view text, bool add_prefix) {
  std::string escaped;
  escaped.reserve(text.size() + text.size() / 2 + kSpace.size());
  if (add_prefix) escaped.append(kSpace.data(), kSpace.size());
  for (const char c : text) {
    if (c == ' ') {
      escaped.append(kSpace.data(), kSpace.size());
    } else {
      escaped.push_back(c);
    }
  }
  return escaped;
}

std::vector<Symbol> SplitCharacters(absl::string_view text) {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (uint32_t at = 0; at < text.size();) {
    const uint32_t i = static_cast<uint32_t>(symbols.size());
    const uint32_t length = DecodeValidUtf8(text, at).bytes;
    symbols.push_back({at, length, i == 0 ? kNone : i - 1, i + 1});
    at += length;
  }
  symbols.back().next = kNone;
  return symbols;
}

}  // namespace

void SpmEncoder::Encode(absl::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  const std::string escaped = EscapeSpaces(text, add_space_prefix_);
  const absl::string_view view = escaped;
  std::vector<Symbol> symbols = SplitCharacters(view);
  std::priority_queue<Candidate> queue;
  const auto consider = [&](uint32_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const uint32_t length = symbols[left].length + symbols[symbols[left].next].length;
    if (length > vocab_->max_text_bytes()) return;
    const int32_t id = vocab_->FindText(view.substr(symbols[left].begin, length));
    if (id != kNoToken) queue.push({vocab_->score(id), left, length});
  };
  for (uint32_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.length == 0 || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    if (left.length + right.length != best.length) continue;
    left.length = best.length;
    left.next = right.next;
    right.length = 0;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) {
    AppendSymbol(view.substr(symbols[i].begin, symbols[i].length), ids);
  }
}

void SpmEncoder::AppendSymbol(absl::string_view symbol, std::vector<int32_t>& ids) const {
  if (const int32_t id = vocab_->FindText(symbol); id != kNoToken) {
    ids.push_back(id);
    return;
  }
  const size_t before = ids.size();
  for (const char byte : symbol) {
    const int32_t id = vocab_->byte_token(static_cast<uint8_t>(byte));
    if (id == kNoToken) {
      ids.resize(before);
      if (unknown_ != kNoToken) ids.push_back(unknown_);
      return;
    }
    ids.push_back(id);
  }
}

}  // namespace isotherm
