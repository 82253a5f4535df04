#include "models/tokenizer/tokenizer.h"

#include <algorithm>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr size_t kMaxTextBytes = size_t{64} << 20;

// Models name their end tokens so; files often record only one of them.
constexpr absl::string_view kStopNames[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>",
                                            "<|endoftext|>", "</s>"};

absl::StatusOr<TokenizerModel> ParseModel(absl::string_view model) {
  if (model == "gpt2") return TokenizerModel::kByteBpe;
  if (model == "llama") return TokenizerModel::kSpm;
  return absl::InvalidArgumentError(absl::StrCat("tokenizer model '", model.substr(0, 64),
                                                 "' is not supported; supported are gpt2 "
                                                 "(byte-level BPE) and llama (SentencePiece)"));
}

// Files of 2023 have no pre-tokenizer; their architecture tells it.
std::string PreOf(const TokenizerSpec& spec) {
  if (!spec.pre.empty()) return spec.pre;
  if (spec.architecture == "falcon") return "falcon";
  if (spec.architecture == "opt") return "gpt-2";
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  ISOTHERM_ASSIGN_OR_RETURN(const TokenizerModel model, ParseModel(spec.model));
  const bool spm = model == TokenizerModel::kSpm;
  const auto default_id = [&](std::optional<int32_t>& id, int32_t value) {
    if (!id.has_value() && value < static_cast<int64_t>(spec.tokens.size())) id = value;
  };
  if (spm) {
    default_id(spec.bos, 1);
    default_id(spec.eos, 2);
    default_id(spec.unk, 0);
  }
  const bool opt = spec.architecture == "opt";
  if (opt) default_id(spec.bos, 2);
  PreTokenizer pre = PreTokenizer::kGpt2;
  if (!spm) {
    ISOTHERM_ASSIGN_OR_RETURN(pre, ParsePreTokenizer(PreOf(spec)));
  }
  const std::vector<std::string> merges = std::move(spec.merges);
  const std::optional<int32_t> bos = spec.bos, eos = spec.eos, eot = spec.eot, unk = spec.unk;
  const bool llama_bpe = !spm && pre == PreTokenizer::kLlamaBpe;
  const bool add_bos = spec.add_bos.value_or(spm || llama_bpe || opt);
  const bool add_eos = spec.add_eos.value_or(false);
  const bool space_prefix = spm && spec.add_space_prefix.value_or(true);
  if ((add_bos && !bos.has_value()) || (add_eos && !eos.has_value())) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer adds ", add_bos && !bos.has_value() ? "BOS" : "EOS",
                     " but the file names no such token; the model file is damaged"));
  }

  ISOTHERM_ASSIGN_OR_RETURN(Vocabulary vocab, Vocabulary::Create(model, std::move(spec)));
  ISOTHERM_ASSIGN_OR_RETURN(SpecialMatcher specials, SpecialMatcher::Create(vocab));
  auto tokenizer = absl::WrapUnique(new Tokenizer(std::move(vocab), std::move(specials)));
  tokenizer->bos_ = bos;
  tokenizer->eos_ = eos;
  tokenizer->add_bos_ = add_bos;
  tokenizer->add_eos_ = add_eos;
  tokenizer->strip_space_prefix_ = space_prefix;
  if (spm) {
    tokenizer->encoder_.emplace(
        SpmEncoder(tokenizer->vocab_, space_prefix, unk.value_or(kNoToken)));
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(BpeEncoder bpe, BpeEncoder::Create(tokenizer->vocab_, pre, merges));
    tokenizer->encoder_.emplace(std::move(bpe));
  }
  tokenizer->FillStopIds(eot);
  return tokenizer;
}

void Tokenizer::FillStopIds(std::optional<int32_t> eot) {
  if (eos_.has_value()) stop_ids_.push_back(*eos_);
  if (eot.has_value()) stop_ids_.push_back(*eot);
  for (int32_t id = 0; id < vocab_.size(); ++id) {
    if (vocab_.type(id) != TokenType::kControl) continue;
    const auto* name = std::find(std::begin(kStopNames), std::end(kStopNames), vocab_.text(id));
    if (name != std::end(kStopNames)) stop_ids_.push_back(id);
  }
  std::sort(stop_ids_.begin(), stop_ids_.end());
  stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text, bool add_special,
                                                       bool parse_special) const {
  const Segment segment{text, parse_special};
  return Encode(std::span(&segment, 1), add_special);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::span<const Segment> segments,
                                                       bool add_special) const {
  std::string joined;
  std::vector<SpecialMatcher::Range> trusted;
  for (const Segment& segment : segments) {
    if (segment.text.size() > kMaxTextBytes - joined.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("text is longer than ", kMaxTextBytes, " bytes; send less"));
    }
    const size_t begin = joined.size();
    joined.append(segment.text.data(), segment.text.size());
    if (!segment.parse_special || segment.text.empty()) continue;
    if (!trusted.empty() && trusted.back().end == begin) {
      trusted.back().end = joined.size();
    } else {
      trusted.push_back({begin, joined.size()});
    }
  }
  if (const size_t bad = FindInvalidUtf8(joined); bad != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not valid UTF-8 at byte ", bad, "; send UTF-8 text"));
  }

  const absl::string_view text = joined;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 2);
  size_t at = 0;
  for (size_t cursor = 0; at < text.size();) {
    const SpecialMatcher::Match match = specials_.FindNext(text, at, trusted, cursor);
    if (match.id == kNoToken) break;
    EncodeRun(text.substr(at, match.begin - at), ids);
    ids.push_back(match.id);
    at = match.end;
  }
  EncodeRun(text.substr(at), ids);
  if (add_special && add_bos_ && (ids.empty() || ids.front() != *bos_)) {
    ids.insert(ids.begin(), *bos_);
  }
  if (add_special && add_eos_) ids.push_back(*eos_);
  return ids;
}

void Tokenizer::EncodeRun(absl::string_view run, std::vector<int32_t>& ids) const {
  if (run.empty()) return;
  std::visit([&](const auto& encoder) { encoder.Encode(run, ids); }, *encoder_);
}

std::string Tokenizer::Piece(int32_t id) const {
  if (id < 0 || id >= vocab_.size()) return "";
  return std::string(vocab_.bytes(id));
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool with_control) const {
  std::string bytes;
  bool at_start = true;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_.size()) continue;
    if (vocab_.IsControl(id)) {
      if (with_control) bytes.append(vocab_.text(id).data(), vocab_.text(id).size());
      continue;
    }
    absl::string_view piece = vocab_.bytes(id);
    if (at_start && strip_space_prefix_ && !piece.empty() && piece[0] == ' ' &&
        vocab_.type(id) != TokenType::kUserDefined) {
      piece.remove_prefix(1);
    }
    at_start = false;
    bytes.append(piece.data(), piece.size());
  }
  return ReplaceInvalidUtf8(bytes);
}

bool Tokenizer::IsStop(int32_t id) const {
  return std::binary_search(stop_ids_.begin(), stop_ids_.end(), id);
}

bool Tokenizer::IsControl(int32_t id) const {
  return id >= 0 && id < vocab_.size() && vocab_.IsControl(id);
}

}  // namespace isotherm
