#include "models/tokenizer/vocabulary.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/status_macros.h"
#include "models/tokenizer/byte_letters.h"
#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 20;
constexpr size_t kMaxTokenBytes = 4096;
constexpr absl::string_view kSpmSpace = "\xE2\x96\x81";  // U+2581

std::string Quote(absl::string_view token) {
  return absl::StrCat("'", absl::CHexEscape(token.substr(0, 64)), "'");
}

absl::Status BadList(absl::string_view list, size_t got, size_t wanted) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer has ", got, " ", list, " for ", wanted,
                                                 " tokens; the model file is damaged"));
}

// 0-255 from exactly "<0xNN>" with upper-case digits, else -1.
int ByteOfToken(absl::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    int digit;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else {
      return -1;
    }
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace

absl::StatusOr<Vocabulary> Vocabulary::Create(TokenizerModel model, TokenizerSpec spec) {
  Vocabulary vocab;
  if (spec.tokens.empty() || spec.tokens.size() > kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer has ", spec.tokens.size(),
                                                   " tokens; 1 to ", kMaxTokens, " are supported"));
  }
  vocab.texts_ = std::move(spec.tokens);
  ISOTHERM_RETURN_IF_ERROR(vocab.FillTypes(spec));
  ISOTHERM_RETURN_IF_ERROR(vocab.FillScores(model, spec));
  ISOTHERM_RETURN_IF_ERROR(vocab.FillIndex());
  ISOTHERM_RETURN_IF_ERROR(vocab.FillByteTokens(model));
  vocab.FillBytes(model);
  return vocab;
}

absl::Status Vocabulary::FillTypes(const TokenizerSpec& spec) {
  const std::optional<int32_t> ids[] = {spec.bos, spec.eos, spec.eot, spec.unk, spec.pad};
  for (const std::optional<int32_t>& id : ids) {
    if (id.has_value() && (*id < 0 || *id >= size())) {
      return absl::InvalidArgumentError(absl::StrCat("special token id ", *id,
                                                     " is outside the vocabulary of ", size(),
                                                     " tokens; the model file is damaged"));
    }
  }
  types_.assign(texts_.size(), TokenType::kNormal);
  if (spec.token_types.empty()) {
    // Files without types do not say which tokens are special; these ids are by their use.
    for (const std::optional<int32_t>& id : ids) {
      if (id.has_value()) types_[*id] = TokenType::kControl;
    }
    return absl::OkStatus();
  }
  if (spec.token_types.size() != texts_.size()) {
    return BadList("token types", spec.token_types.size(), texts_.size());
  }
  for (size_t i = 0; i < types_.size(); ++i) {
    const int32_t type = spec.token_types[i];
    if (type < static_cast<int32_t>(TokenType::kNormal) ||
        type > static_cast<int32_t>(TokenType::kByte)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", i, " has type ", type, "; 1 to 6 are known"));
    }
    types_[i] = static_cast<TokenType>(type);
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::FillScores(TokenizerModel model, TokenizerSpec& spec) {
  if (model == TokenizerModel::kByteBpe) return absl::OkStatus();
  if (spec.scores.size() != texts_.size()) {
    return BadList("scores", spec.scores.size(), texts_.size());
  }
  for (size_t i = 0; i < spec.scores.size(); ++i) {
    if (!std::isfinite(spec.scores[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("score of token ", i, " is not a finite number"));
    }
  }
  scores_ = std::move(spec.scores);
  return absl::OkStatus();
}

absl::Status Vocabulary::FillIndex() {
  absl::flat_hash_set<absl::string_view> seen;
  seen.reserve(texts_.size());
  text_ids_.reserve(texts_.size());
  for (int32_t id = 0; id < size(); ++id) {
    const std::string& text = texts_[id];
    if (text.size() > kMaxTokenBytes || FindInvalidUtf8(text) != absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " (", text.size(), " bytes) is ",
                                                     "not UTF-8 text of at most ", kMaxTokenBytes,
                                                     " bytes"));
    }
    if (!seen.insert(text).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " ", Quote(text), " is in the vocabulary twice"));
    }
    if (types_[id] != TokenType::kNormal && types_[id] != TokenType::kUserDefined) continue;
    if (text.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " has no text"));
    }
    max_text_bytes_ = std::max(max_text_bytes_, text.size());
    text_ids_.emplace(text, id);
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::FillByteTokens(TokenizerModel model) {
  byte_tokens_.fill(kNoToken);
  if (model == TokenizerModel::kByteBpe) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string letter;
      AppendUtf8(LetterOfByte(static_cast<uint8_t>(byte)), letter);
      byte_tokens_[byte] = FindText(letter);
    }
    return absl::OkStatus();
  }
  for (int32_t id = 0; id < size(); ++id) {
    if (types_[id] != TokenType::kByte) continue;
    const int byte = ByteOfToken(texts_[id]);
    if (byte < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "byte token ", id, " is spelled ", Quote(texts_[id]), "; wanted <0x00> to <0xFF>"));
    }
    byte_tokens_[byte] = id;
  }
  return absl::OkStatus();
}

void Vocabulary::FillBytes(TokenizerModel model) {
  bytes_.resize(texts_.size());
  for (int32_t id = 0; id < size(); ++id) {
    const std::string& text = texts_[id];
    switch (types_[id]) {
      case TokenType::kByte:
        bytes_[id] = model == TokenizerModel::kSpm
                         ? std::string(1, static_cast<char>(ByteOfToken(text)))
                         : text;
        break;
      case TokenType::kNormal:
      case TokenType::kUnused:
        // A padding token such as one with a plain space is not spelled in byte letters.
        bytes_[id] = model == TokenizerModel::kSpm ? absl::StrReplaceAll(text, {{kSpmSpace, " "}})
                                                   : BytesOfLetters(text).value_or(text);
        break;
      case TokenType::kUnknown:
      case TokenType::kControl:
      case TokenType::kUserDefined:
        bytes_[id] = text;
        break;
    }
  }
}

}  // namespace isotherm
