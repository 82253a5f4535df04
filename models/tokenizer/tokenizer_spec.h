#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace isotherm {

// What a model file says of its tokenizer (tokenizer.ggml.*), unchecked.
struct TokenizerSpec {
  std::string model;         // "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;           // "gpt-2", "smollm", "falcon", "llama-bpe"; may be empty in 2023 files
  std::string architecture;  // general.architecture: gives `pre` and BOS defaults of 2023 files
  std::vector<std::string> tokens;
  std::vector<float> scores;         // one per token; needed by "llama" only
  std::vector<int32_t> token_types;  // TokenType, one per token, or empty: all normal
  std::vector<std::string> merges;   // "left right", best first; needed by "gpt2" only
  std::optional<int32_t> bos, eos, eot, unk, pad;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

// Values of tokenizer.ggml.token_type.
enum class TokenType : int8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

}  // namespace isotherm
