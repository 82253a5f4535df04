#include "models/tokenizer/bpe_encoder.h"

#include <algorithm>
#include <array>
#include <queue>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

// Up to here a scan for the best pair beats a heap; pieces of real text are nearly all shorter.
constexpr size_t kShortPiece = 32;

// Tokens longer than this are reached by merging; only the speed of such pieces depends on it.
constexpr size_t kMaxWholePiece = 64;

absl::Status BadMerge(size_t rank, absl::string_view merge, absl::string_view fault) {
  return absl::InvalidArgumentError(absl::StrCat("merge ", rank, " '",
                                                 absl::CHexEscape(merge.substr(0, 64)), "' ", fault,
                                                 "; the model file is damaged"));
}

}  // namespace

absl::StatusOr<BpeEncoder> BpeEncoder::Create(const Vocabulary& vocab, PreTokenizer pre,
                                              const std::vector<std::string>& merges) {
  BpeEncoder encoder(vocab, pre);
  ISOTHERM_RETURN_IF_ERROR(encoder.AddMerges(merges));
  encoder.AddWholePieces();
  return encoder;
}

absl::Status BpeEncoder::AddMerges(const std::vector<std::string>& merges) {
  if (merges.size() > (size_t{1} << 22)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer has ", merges.size(), " merges; at most ", 1 << 22));
  }
  merges_.reserve(merges.size());
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const absl::string_view merge = merges[rank];
    // A part may itself begin with a space in vocabularies not spelled in byte letters.
    const size_t space = merge.empty() ? absl::string_view::npos : merge.find(' ', 1);
    if (space == absl::string_view::npos || space + 1 == merge.size()) {
      return BadMerge(rank, merge, "is not two tokens with a space between");
    }
    const absl::string_view left = merge.substr(0, space);
    const absl::string_view right = merge.substr(space + 1);
    joined.assign(left.data(), left.size());
    joined.append(right.data(), right.size());
    const int32_t left_id = vocab_->FindText(left);
    const int32_t right_id = vocab_->FindText(right);
    const int32_t result = vocab_->FindText(joined);
    if (left_id == kNoToken || right_id == kNoToken || result == kNoToken) {
      return BadMerge(rank, merge, "has a part or a result that is no ordinary token");
    }
    const uint64_t key =
        uint64_t{static_cast<uint32_t>(left_id)} << 32 | static_cast<uint32_t>(right_id);
    if (!merges_.emplace(key, Merge{static_cast<int32_t>(rank), result}).second) {
      return BadMerge(rank, merge, "is listed twice");
    }
  }
  return absl::OkStatus();
}

void BpeEncoder::AddWholePieces() {
  // llama-bpe takes a piece that is a token as it is; the others only if merging leads there.
  const bool any_token = pre_ == PreTokenizer::kLlamaBpe;
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocab_->size(); ++id) {
    if (vocab_->FindText(vocab_->text(id)) == kNoToken) continue;
    const absl::string_view bytes = vocab_->bytes(id);
    if (!any_token) {
      if (bytes.size() > kMaxWholePiece) continue;
      ids.clear();
      EncodePiece(bytes, ids);
      if (ids.size() != 1 || ids[0] != id) continue;
    }
    whole_pieces_.emplace(bytes, id);
    max_whole_piece_ = std::max(max_whole_piece_, bytes.size());
  }
}

void BpeEncoder::Encode(absl::string_view text, std::vector<int32_t>& ids) const {
  std::vector<uint32_t> ends;
  ends.reserve(text.size() / 4 + 1);
  SplitText(pre_, text, ends);
  uint32_t begin = 0;
  for (const uint32_t end : ends) {
    EncodePiece(text.substr(begin, end - begin), ids);
    begin = end;
  }
}

void BpeEncoder::EncodePiece(absl::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() <= max_whole_piece_) {
    const auto whole = whole_pieces_.find(piece);
    if (whole != whole_pieces_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  if (piece.size() <= kShortPiece) {
    MergeShort(piece, ids);
  } else {
    MergeLong(piece, ids);
  }
}

void BpeEncoder::MergeShort(absl::string_view piece, std::vector<int32_t>& ids) const {
  // merges[i] joins symbols i and i + 1.
  std::array<int32_t, kShortPiece> symbols;
  std::array<const Merge*, kShortPiece> merges;
  size_t n = 0;
  for (const char byte : piece) {
    const int32_t id = vocab_->byte_token(static_cast<uint8_t>(byte));
    if (id != kNoToken) symbols[n++] = id;
  }
  for (size_t i = 0; i + 1 < n; ++i) merges[i] = FindMerge(symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = n;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (merges[i] == nullptr) continue;
      if (best == n || merges[i]->rank < merges[best]->rank) best = i;
    }
    if (best == n) break;
    symbols[best] = merges[best]->result;
    std::copy(symbols.begin() + best + 2, symbols.begin() + n, symbols.begin() + best + 1);
    std::copy(merges.begin() + best + 1, merges.begin() + (n - 1), merges.begin() + best);
    --n;
    if (best + 1 < n) merges[best] = FindMerge(symbols[best], symbols[best + 1]);
    if (best > 0) merges[best - 1] = FindMerge(symbols[best - 1], symbols[best]);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.begin() + n);
}

void BpeEncoder::MergeLong(absl::string_view piece, std::vector<int32_t>& ids) const {
  constexpr uint32_t kNone = UINT32_MAX;
  struct Symbol {
    int32_t id;  // kNoToken once merged into its left neighbour
    uint32_t previous;
    uint32_t next;
  };
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char byte : piece) {
    const int32_t id = vocab_->byte_token(static_cast<uint8_t>(byte));
    if (id == kNoToken) continue;
    const uint32_t i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, i == 0 ? kNone : i - 1, i + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = kNone;

  struct Candidate {
    int32_t rank;
    uint32_t left;
    int32_t result;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](uint32_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const Merge* merge = FindMerge(symbols[left].id, symbols[symbols[left].next].id);
    if (merge != nullptr) queue.push({merge->rank, left, merge->result});
  };
  for (uint32_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.id == kNoToken || left.next == kNone) continue;
    const uint32_t right = left.next;
    const Merge* merge = FindMerge(left.id, symbols[right].id);
    if (merge == nullptr || merge->rank != best.rank) continue;  // a neighbour has changed since
    left.id = best.result;
    left.next = symbols[right].next;
    symbols[right].id = kNoToken;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace isotherm
