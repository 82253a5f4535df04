#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tensor/dtype.h"

namespace isotherm {

enum class Container { kPowerInfer, kGguf };

struct ConversionOptions {
  std::string input_path;
  std::string output_path;
  std::optional<Container> container;  // absent: the input's
  bool arena = false;                  // neurons in bundle order; else by matrix
  std::optional<DType> type;     // of the matrices: F16, BF16, Q8_0 or Q4_0; absent: as stored
  bool drop_predictors = false;  // they may go
  bool relu = false;             // the user knows the model for a ReLU one
  bool replace = false;          // an output that is there may go
  int num_threads = 0;           // 0: DefaultThreadCount()
  // stage "converting" or "checking", bytes done, bytes in all; may be empty.
  std::function<void(absl::string_view stage, int64_t done, int64_t total)> progress;
};

struct ConversionReport {
  int64_t output_bytes = 0;
  std::vector<std::string> notes;  // in words: what is not as it was, and for whom
  bool profile_copied = false;     // the activation profile beside the input is beside the output
};

// Writes the model anew: PowerInfer's layout (a neuron's down vector is a row) to a plain GGUF
// file's or back, neurons in bundle order or by matrix, or matrices in another type. Keys,
// tokenizer and order are kept. The output appears under its name only when Verify() has found it
// good; until then, and on any error, there is none.
//
// InvalidArgument or FailedPrecondition (exit code 64) for what the user must decide: nothing to
// change, an output that is there, predictors or an activation that would be lost. DataLoss (65)
// for a model that is damaged; ResourceExhausted (71) when the disk is short.
absl::StatusOr<ConversionReport> ConvertModel(const ConversionOptions& options);

}  // namespace isotherm
