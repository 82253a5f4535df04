#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/bpe_encoder.h"
#include "models/tokenizer/special_matcher.h"
#include "models/tokenizer/spm_encoder.h"
#include "models/tokenizer/stream_decoder.h"
#include "models/tokenizer/tokenizer_spec.h"
#include "models/tokenizer/vocabulary.h"

namespace isotherm {

// Text to token ids and back, as the model was trained: byte-level BPE or SentencePiece BPE.
// Immutable after Create: any thread may call any method. Errors are statuses, never exceptions.
class Tokenizer {
 public:
  // InvalidArgument says what of the specification is wrong or not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // A run of text from one source. Only where parse_special is set (a chat template, never what a
  // user wrote) do spelled control tokens become control ids.
  struct Segment {
    absl::string_view text;
    bool parse_special = false;
  };

  // The segments are one text and tokenized as such: a piece may span them, and a control token
  // may span neighbouring segments that all have parse_special. User-defined tokens match
  // everywhere. add_special puts BOS and EOS around it where the model wants them, but no second
  // BOS. InvalidArgument: not valid UTF-8, or more than 64 MiB.
  absl::StatusOr<std::vector<int32_t>> Encode(std::span<const Segment> segments,
                                              bool add_special) const;
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special,
                                              bool parse_special) const;

  // The bytes of one token, perhaps part of a character; a control token gives its name. Empty
  // for an id outside the vocabulary.
  std::string Piece(int32_t id) const;

  // Valid UTF-8: bytes that form no character become U+FFFD. Control tokens are left out unless
  // with_control; so is the space that Encode put before the text. Unknown ids give nothing.
  std::string Decode(std::span<const int32_t> ids, bool with_control = false) const;

  // Ends a generation: EOS, end of turn, and control tokens with the usual names of these.
  bool IsStop(int32_t id) const;
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }  // ascending

  bool IsControl(int32_t id) const;
  int64_t vocab_size() const { return vocab_.size(); }
  std::optional<int32_t> bos() const { return bos_; }
  std::optional<int32_t> eos() const { return eos_; }
  bool add_bos() const { return add_bos_; }

 private:
  using Encoder = std::variant<BpeEncoder, SpmEncoder>;

  Tokenizer(Vocabulary vocab, SpecialMatcher specials)
      : vocab_(std::move(vocab)), specials_(std::move(specials)) {}
  void FillStopIds(std::optional<int32_t> eot);
  void EncodeRun(absl::string_view run, std::vector<int32_t>& ids) const;

  const Vocabulary vocab_;
  const SpecialMatcher specials_;
  std::optional<Encoder> encoder_;  // refers to vocab_; set by Create, never changed
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
  bool add_bos_ = false;
  bool add_eos_ = false;
  bool strip_space_prefix_ = false;
  std::vector<int32_t> stop_ids_;
};

}  // namespace isotherm
