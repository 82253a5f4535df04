#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "gateway/text/text_model.h"

namespace isotherm {

struct TextModelOptions {
  std::string path;
  std::string name;           // what it is called; empty: as the file says
  std::string chat_template;  // a built-in's name or a file; empty: the model file's own, if any
};

// Reads what the gateway needs of a GGUF file: hyperparameters, tokenizer, chat template; no
// weight. NotFound and DataLoss carry exit code 65. A template of the model file that cannot be
// used is logged and leaves the model without chat; one that was asked for is an error.
absl::StatusOr<std::shared_ptr<const TextModel>> LoadGgufTextModel(const TextModelOptions& options);

}  // namespace isotherm
