#pragma once

#include "absl/status/statusor.h"
#include "models/gguf/gguf_file.h"
#include "models/tokenizer/tokenizer_spec.h"

namespace isotherm {

// The tokenizer.ggml.* keys of a model file. An error names the key that is missing or of another
// type; what the values say is checked by Tokenizer::Create.
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const GgufFile& file);

}  // namespace isotherm
