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
  SpmEncoder(const Vocabulary& vocab, bool add_space_prefix, int32_t unknown)
      : vocab_(&vocab), add_space_prefix_(add_space_prefix), unknown_(unknown) {}

  // Appends the tokens of `text` (valid UTF-8, no specials inside), with a space put before it if
  // that is the model's way. An empty text gives nothing.
  void Encode(absl::string_view text, std::vector<int32_t>& ids) const;

 private:
  void AppendSymbol(absl::string_view symbol, std::vector<int32_t>& ids) const;

  const Vocabulary* vocab_;
  bool add_space_prefix_;
  int32_t unknown_;
};

}  // namespace isotherm
