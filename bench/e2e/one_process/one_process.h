#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/host/host_device.h"
#include "gpu_worker/host/owned_neurons.h"
#include "models/model_file.h"

namespace isotherm::bench {

struct OneProcessRun {
  std::vector<int32_t> prompt;
  int64_t generated_tokens = 128;
  bool exact = false;  // every neuron, without the predictor
};

struct OneProcessResult {
  double time_to_first_token_ms = 0;
  double decode_ms = 0;  // of the tokens after the first
  int64_t tokens = 0;
  // Weight bytes that a decoded token needs: matrices, head, and of each neuron the gate row, plus
  // up and down where the gate is open.
  double bytes_per_token = 0;
  double active_share = 0;        // of all neurons, those predicted, while decoding
  double us_per_layer_dense = 0;  // attention and predictor
  double us_per_layer_neurons = 0;
};

// The whole model in this process: the gpu_worker's host device with every neuron in its own
// memory, the baseline of what splitting costs. Greedy decoding, prompts in one step. One thread.
class OneProcess {
 public:
  static absl::StatusOr<std::unique_ptr<OneProcess>> Create(const std::string& model_path,
                                                            int threads);
  // InvalidArgument for a prompt that is empty, or with the answer longer than kMaxTokens.
  absl::StatusOr<OneProcessResult> Run(const OneProcessRun& run);
  int threads() const { return device_->Describe().threads; }

  static constexpr int64_t kMaxTokens = 4096;
  static constexpr int32_t kMaxRows = 256;

 private:
  OneProcess() = default;
  absl::StatusOr<int32_t> Step(const std::vector<int32_t>& tokens, int64_t first, bool exact,
                               gpu::SamplingState& sampling);
  double BytesPerToken(int64_t gates, int64_t open) const;

  std::unique_ptr<ModelFile> model_;
  std::unique_ptr<gpu::OwnedNeurons> neurons_;
  std::unique_ptr<gpu::HostDevice> device_;
  std::vector<int32_t> pages_;
  gpu::DeviceOutput output_;
  int64_t step_id_ = 0;
  int64_t dense_bytes_ = 0;  // of a token: all but neurons
};

}  // namespace isotherm::bench
