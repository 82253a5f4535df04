#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "models/tokenizer/vocabulary.h"

namespace isotherm {

// SentencePiece BPE: from single characters, joins the adjacent pair whose union is the token of
// highest score, leftmost on ties; a character without token becomes its bytes, or `unknown`.
// Time O(n log n). Keeps a reference to the vocabulary. Immutable, any thread.
class SpmEncoder {
 public:
  // `unknown` stands for a character of which a byte has no token; kNoToken drops it.
  SpmEncoder(const Vocabulary& vocab, bool add_space_prefix, int32_t unknown);

  // Appends the tokens of `text` (valid UTF-8, no specials inside), with a space put before it if
  // that is the model's way. An empty text gives nothing.
  void Encode(absl::string_view text, std::vector<int32_t>& ids) const;

 private:
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
  // Reused from word to word.
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  void EncodeWord(absl::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;
  void MergeWord(absl::string_view word, Scratch& scratch) const;
  void AppendSymbol(absl::string_view symbol, std::vector<int32_t>& ids) const;

  const Vocabulary* vocab_;
  bool add_space_prefix_;
  int32_t unknown_;
  // No token has a space behind another character, so no merge reaches over such a place and the
  // text can be cut there. Holds for vocabularies trained with words kept apart, as is usual.
  bool words_are_apart_ = true;
  // By id: merging the token's own text ends in the token. Most words of a text are such tokens.
  std::vector<bool> is_whole_word_;
};

}  // namespace isotherm
