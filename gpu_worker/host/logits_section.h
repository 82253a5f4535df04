#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/threading/thread_pool.h"
#include "gpu_worker/device.h"
#include "gpu_worker/host/host_weights.h"
#include "models/model_config.h"

namespace isotherm::gpu {

// The end of a step: final norm, head and sampling of the rows that ask for it. Owned by the
// HostDevice; Run is called by the thread that runs the step.
class LogitsSection {
 public:
  // All outlive the section.
  LogitsSection(const ModelConfig& config, bool bf16, const HostWeights& weights, ThreadPool& pool);

  // x: [rows, model_dim], the residual after the last layer. Appends a sample for each row with a
  // sampling state. DataLoss when a row's logits are not numbers: nothing was appended.
  absl::Status Run(std::span<const DeviceRow> rows, const float* x,
                   std::vector<DeviceSample>* samples);

  // Of the last Run, [rows that sampled, vocab_size], after penalties; for tests that compare them.
  const std::vector<float>& logits() const { return logits_; }

 private:
  const ModelConfig config_;
  const bool bf16_;
  const HostWeights& weights_;
  ThreadPool& pool_;
  std::vector<float> gathered_, logits_;
};

}  // namespace isotherm::gpu
