#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// How byte-level BPE cuts a text into pieces before merging; the values of tokenizer.ggml.pre.
enum class PreTokenizer { kGpt2, kSmollm, kFalcon, kLlamaBpe };

// InvalidArgument names the supported values.
absl::StatusOr<PreTokenizer> ParsePreTokenizer(absl::string_view pre);

// Cuts `text` (valid UTF-8) into consecutive pieces that cover it: appends the end offset of each
// piece to `ends`. Linear in the text; hand-written equivalents of the models' regular
// expressions, which stand in pre_tokenizer.cc. Any thread.
void SplitText(PreTokenizer kind, absl::string_view text, std::vector<uint32_t>& ends);

}  // namespace isotherm
