#include "models/tokenizer/spm_encoder.h"

#include <algorithm>
#include <string>

#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr absl::string_view kSpace = "\xE2\x96\x81";  // U+2581
constexpr uint32_t kNone = UINT32_MAX;

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

// Where the word that begins at `begin` ends: before the next U+2581 that follows another
// character.
size_t EndOfWord(absl::string_view text, size_t begin) {
  size_t at = begin;
  while (text.substr(at, kSpace.size()) == kSpace) at += kSpace.size();
  return std::min(text.find(kSpace, at), text.size());
}

}  // namespace

SpmEncoder::SpmEncoder(const Vocabulary& vocab, bool add_space_prefix, int32_t unknown)
    : vocab_(&vocab), add_space_prefix_(add_space_prefix), unknown_(unknown) {
  Scratch scratch;
  is_whole_word_.resize(static_cast<size_t>(vocab.size()));
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const absl::string_view text = vocab.text(id);
    if (vocab.FindText(text) == kNoToken) continue;
    words_are_apart_ = words_are_apart_ && EndOfWord(text, 0) == text.size();
    MergeWord(text, scratch);
    is_whole_word_[static_cast<size_t>(id)] = scratch.symbols[0].length == text.size();
  }
}

void SpmEncoder::Encode(absl::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  const std::string escaped = EscapeSpaces(text, add_space_prefix_);
  const absl::string_view view = escaped;
  Scratch scratch;
  for (size_t begin = 0; begin < view.size();) {
    const size_t end = words_are_apart_ ? EndOfWord(view, begin) : view.size();
    EncodeWord(view.substr(begin, end - begin), scratch, ids);
    begin = end;
  }
}

void SpmEncoder::EncodeWord(absl::string_view word, Scratch& scratch,
                            std::vector<int32_t>& ids) const {
  if (word.size() <= vocab_->max_text_bytes()) {
    const int32_t id = vocab_->FindText(word);
    if (id != kNoToken && is_whole_word_[static_cast<size_t>(id)]) {
      ids.push_back(id);
      return;
    }
  }
  MergeWord(word, scratch);
  for (uint32_t i = 0; i != kNone; i = scratch.symbols[i].next) {
    const Symbol& symbol = scratch.symbols[i];
    AppendSymbol(word.substr(symbol.begin, symbol.length), ids);
  }
}

void SpmEncoder::MergeWord(absl::string_view word, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (uint32_t at = 0; at < word.size();) {
    const uint32_t i = static_cast<uint32_t>(symbols.size());
    const uint32_t length = DecodeValidUtf8(word, at).bytes;
    symbols.push_back({at, length, i == 0 ? kNone : i - 1, i + 1});
    at += length;
  }
  symbols.back().next = kNone;
  const auto consider = [&](uint32_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const uint32_t length = symbols[left].length + symbols[symbols[left].next].length;
    if (length > vocab_->max_text_bytes()) return;
    const int32_t id = vocab_->FindText(word.substr(symbols[left].begin, length));
    if (id == kNoToken) return;
    heap.push_back({vocab_->score(id), left, length});
    std::push_heap(heap.begin(), heap.end());
  };
  for (uint32_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
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
