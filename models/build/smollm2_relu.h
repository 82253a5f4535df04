#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/tensor/dtype.h"

namespace isotherm {

// SHA-256 of the base file that the shipped adapter was trained on: SmolLM2-135M-Instruct, Q4_1.
inline constexpr char kSmollm2BaseSha256[] =
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

struct BuildOptions {
  std::string base_path;
  std::string adapter_path;
  std::string output_path;      // the profile is written beside it, see ProfilePathFor()
  DType format = DType::kQ8_0;  // of the merged matrices: Q8_0, F16 or Q4_0
  std::string base_sha256 = kSmollm2BaseSha256;
  int num_threads = 0;  // 0: all cores; the result does not depend on it
  // Stage name, bytes done, bytes in all. May be empty. Called from the calling thread.
  std::function<void(absl::string_view stage, int64_t done, int64_t total)> progress;
};

// Merges base and adapter, W' = W + lora_b . lora_a in F32, into a sparse PWRI model: ReLU,
// predictors, ffn_down transposed to one row a neuron; tokenizer and chat template come from the
// base. Deterministic. DataLoss (exit code 65) for a base with another SHA-256 or an adapter that
// does not fit it.
absl::Status BuildSmollm2Relu(const BuildOptions& options);

}  // namespace isotherm
