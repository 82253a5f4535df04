#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/model_config.h"

namespace isotherm {

// What a person asks of a model file.
struct ModelSummary {
  ModelConfig config;
  std::string path;
  int64_t file_bytes = 0;
  bool powerinfer = false;
  int64_t num_tensors = 0;
  int64_t parameters = 0;
  std::string weight_types;     // "Q8_0 273, F32 61"
  std::string ffn_type;         // of the bundles
  bool bundle_ordered = false;  // the file itself serves as the arena
  int64_t ffn_bytes = 0;        // all bundles: the arena
  int64_t dense_bytes = 0;      // everything else that is computed with
  int64_t kv_bytes_per_token = 0;
  std::string repacked;   // in words; empty when nothing is
  std::string tokenizer;  // "gpt2 / smollm, 49152 tokens"
  bool chat_template = false;
  std::vector<std::string> profiles;  // names found beside the file
};

absl::StatusOr<ModelSummary> Inspect(const std::string& path, const ModelOptions& options = {});
std::string ToText(const ModelSummary& summary);
std::string ToJson(const ModelSummary& summary);

// Reads every tensor: scales and floats must be finite; the tokenizer's arrays and ids must
// agree with the vocabulary; the last neuron of each layer must pack; a profile beside the file
// must fit. DataLoss (exit code 65) says what does not. `progress`: bytes done, bytes in all.
absl::Status Verify(const std::string& path,
                    const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace isotherm
