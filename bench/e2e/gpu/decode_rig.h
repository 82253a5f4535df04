#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu_worker/engine/cpu_worker.h"
#include "gpu_worker/device.h"
#include "gpu_worker/engine/shm_cold_attachment.h"
#include "models/model_file.h"

namespace isotherm::bench {

struct RigOptions {
  std::string model;
  std::string profile;  // activation profile file; empty: the first neurons are hot
  std::string device = "auto";
  int64_t vram_budget = -1;
  int64_t context = 512;  // tokens of a sequence
  int32_t sequences = 1;
  int32_t max_rows = 16;
  int32_t product_rows = 0;  // CudaDeviceOptions
  int cpu_threads = 15;
  double streamed_share = -1;
  bool stored_predictor = false;
  bool early_launch = true;
  bool queue_ahead = true;
  uint64_t seed = 1;
};

struct StepRun {
  double us = 0;  // of the step, sampling included
  std::vector<LayerTiming> timings;
  int64_t active = 0, hot = 0;
};

// A gpu_worker's device and a cpu_worker in one process, joined by the shared memory that two
// processes use: what decoding costs without RPCs. It is fed random tokens, whatever it samples: a
// model of random weights left to itself soon repeats, and its neurons then come from the caches.
// Not thread-safe.
class DecodeRig {
 public:
  static absl::StatusOr<std::unique_ptr<DecodeRig>> Create(const RigOptions& options);
  ~DecodeRig();

  // The next token of each of the first `sequences` ones. `then_trace`: how the next call will
  // trace, for a device that begins it early; absent: no such call follows.
  absl::StatusOr<StepRun> Decode(int32_t sequences, bool trace, std::optional<bool> then_trace);
  // `tokens` random ones of sequence 0, from its start, in steps of at most max_rows.
  absl::StatusOr<StepRun> Prefill(int32_t tokens, bool trace);
  // Every sequence begins anew.
  void Restart();

  gpu::DeviceInfo device_info() const { return device_->Describe(); }
  // Bytes of cold neurons that the device itself has read so far.
  absl::StatusOr<uint64_t> ReadByDevice() const;
  const ModelConfig& config() const { return model_->config(); }
  const BundleLayout& layout() const { return model_->bundle_layout(); }
  const PlacementPlan& plan() const { return plan_; }

 private:
  DecodeRig() = default;
  absl::Status Attach();
  absl::Status Place();
  std::vector<gpu::DeviceRow> DecodeRows(int32_t sequences, int32_t ahead) const;
  absl::StatusOr<StepRun> Run(const std::vector<gpu::DeviceRow>& rows, bool trace,
                              const std::vector<gpu::DeviceRow>& then = {},
                              bool then_trace = false);

  RigOptions options_;
  std::shared_ptr<const ModelFile> model_;
  std::string socket_dir_;
  std::unique_ptr<gpu::Device> device_;
  std::unique_ptr<cpu::CpuWorker> cpu_worker_;
  std::unique_ptr<gpu::ShmColdAttachment> attachment_;
  std::shared_ptr<void> mapping_;
  PlacementPlan plan_;
  std::vector<std::vector<int32_t>> pages_;  // of each sequence
  std::vector<int32_t> positions_;
  std::vector<gpu::SamplingState> sampling_;
  TokenId RandomToken() {
    return static_cast<TokenId>(tokens_() % static_cast<uint64_t>(config().vocab_size));
  }
  std::mt19937_64 tokens_;
  std::vector<TokenId> fed_[2];  // of each sequence: in the next step, and in the one behind it
  int64_t step_id_ = 0;
};

}  // namespace isotherm::bench
