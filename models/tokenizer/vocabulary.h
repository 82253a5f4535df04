#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/tokenizer_spec.h"

namespace isotherm {

enum class TokenizerModel { kByteBpe, kSpm };

constexpr int32_t kNoToken = -1;

// The checked tokens of a model, with their meaning in bytes. Owns all text; immutable, any thread.
class Vocabulary {
 public:
  // InvalidArgument: no or too many tokens, lists of different lengths, a token that is not UTF-8,
  // too long or there twice, a bad byte token, a non-finite score, a special id out of range.
  static absl::StatusOr<Vocabulary> Create(TokenizerModel model, TokenizerSpec spec);

  // Views and map keys point into own strings, so a copy would dangle; a move keeps them.
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  int32_t size() const { return static_cast<int32_t>(texts_.size()); }
  TokenType type(int32_t id) const { return types_[id]; }
  float score(int32_t id) const { return scores_[id]; }
  // As spelled in the file.
  absl::string_view text(int32_t id) const { return texts_[id]; }
  // What the token stands for in a text: byte letters and U+2581 undone. May be part of a
  // character.
  absl::string_view bytes(int32_t id) const { return bytes_[id]; }

  // By spelling, among tokens that ordinary text may become: normal and user-defined ones.
  int32_t FindText(absl::string_view text) const {
    const auto it = text_ids_.find(text);
    return it == text_ids_.end() ? kNoToken : it->second;
  }
  // The token of one byte: its letter (byte-level BPE) or `<0xNN>` (SPM).
  int32_t byte_token(uint8_t byte) const { return byte_tokens_[byte]; }
  // Control and unknown tokens: matched in trusted text only, hidden when decoding.
  bool IsControl(int32_t id) const {
    return types_[id] == TokenType::kControl || types_[id] == TokenType::kUnknown;
  }
  size_t max_text_bytes() const { return max_text_bytes_; }

 private:
  Vocabulary() = default;
  absl::Status FillTypes(const TokenizerSpec& spec);
  absl::Status FillScores(TokenizerModel model, TokenizerSpec& spec);
  absl::Status FillIndex();
  absl::Status FillByteTokens(TokenizerModel model);
  void FillBytes(TokenizerModel model);

  std::vector<std::string> texts_;
  std::vector<std::string> bytes_;
  std::vector<TokenType> types_;
  std::vector<float> scores_;
  absl::flat_hash_map<absl::string_view, int32_t> text_ids_;
  std::array<int32_t, 256> byte_tokens_{};
  size_t max_text_bytes_ = 0;
};

}  // namespace isotherm
