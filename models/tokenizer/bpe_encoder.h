#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/pre_tokenizer.h"
#include "models/tokenizer/vocabulary.h"

namespace isotherm {

// Byte-level BPE: cuts a text into pieces, and merges the bytes of each piece by lowest rank,
// leftmost on ties. Bytes without a token are dropped. Time O(n log n) in the piece.
// Keeps a reference to the vocabulary. Immutable, any thread.
class BpeEncoder {
 public:
  // InvalidArgument: a merge without two parts, of parts or into a result that are not tokens, or
  // given twice. Results are the joined parts, so they only grow and merges cannot form a cycle.
  static absl::StatusOr<BpeEncoder> Create(const Vocabulary& vocab, PreTokenizer pre,
                                           const std::vector<std::string>& merges);

  // Appends the tokens of `text` (valid UTF-8, no specials inside).
  void Encode(absl::string_view text, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t result;
  };
  BpeEncoder(const Vocabulary& vocab, PreTokenizer pre) : vocab_(&vocab), pre_(pre) {}

  absl::Status AddMerges(const std::vector<std::string>& merges);
  void AddWholePieces();
  void EncodePiece(absl::string_view piece, std::vector<int32_t>& ids) const;
  void MergeShort(absl::string_view piece, std::vector<int32_t>& ids) const;
  void MergeLong(absl::string_view piece, std::vector<int32_t>& ids) const;
  const Merge* FindMerge(int32_t left, int32_t right) const {
    const auto it =
        merges_.find(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right));
    return it == merges_.end() ? nullptr : &it->second;
  }

  const Vocabulary* vocab_;
  PreTokenizer pre_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // left << 32 | right
  // Pieces whose encoding is known to be this one token: most words of a text.
  absl::flat_hash_map<absl::string_view, int32_t> whole_pieces_;
  size_t max_whole_piece_ = 0;
};

}  // namespace isotherm
