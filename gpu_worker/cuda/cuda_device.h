#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/cuda_counters.h"
#include "gpu_worker/cuda/cuda_tables.h"
#include "gpu_worker/cuda/cuda_weights.h"
#include "gpu_worker/cuda/cut_controller.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/hot_memory.h"
#include "gpu_worker/cuda/mapped_cold.h"
#include "gpu_worker/cuda/prefill_pass.h"
#include "gpu_worker/cuda/share_level.h"
#include "gpu_worker/cuda/step_graph.h"
#include "gpu_worker/device.h"
#include "gpu_worker/engine/hot_pool.h"
#include "gpu_worker/engine/hot_pool_budget.h"
#include "gpu_worker/engine/step_gate.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// This machine has a GPU and its driver.
bool HasCudaDevice();

struct CudaDeviceOptions {
  int device = 0;
  int32_t kv_pages = 0;
  int32_t max_rows = 256;
  int64_t context = 0;  // tokens of a sequence; 0: the model's
  // Of all that the driver counts for this process; what the rest leaves becomes the hot pool.
  // Below 0: what is free when the device is made, less a reserve of 512 MiB.
  int64_t vram_budget = -1;
  bool stored_predictor = false;  // keep the file's type instead of 8 bits
  // Share of each layer's cold neurons that this side reads over PCIe, 0 to 1; below 0: adapted to
  // who finishes last.
  double streamed_share = -1;
  // Steps of so many rows on go through matrix products; 0: by the size of the model and max_rows.
  int32_t product_rows = 0;
  bool early_launch = true;  // AllowEarlyLaunch, for the whole process
  // No flag sets it. Tests enqueue here what goes wrong on the device in front of a step.
  std::function<void(cudaStream_t)> before_step;
};

// A step of a batch on one CUDA device. Small batches run as one captured graph; see Device for the
// contract.
class CudaDevice final : public Device {
 public:
  // `model` outlives the device. FailedPrecondition without a usable device, ResourceExhausted when
  // the budget or the device is too small, InvalidArgument for a model that it does not compute.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(
      const ModelFile& model, const CudaDeviceOptions& options,
      const std::function<void(double)>& progress = {});
  ~CudaDevice() override;

  DeviceInfo Describe() const override;
  bool Lost() const override { return IsSticky(cudaPeekAtLastError()); }
  absl::Status Prepare(const PlacementPlan& plan, const NeuronStore* source,
                       const std::function<void(int64_t, int64_t)>& progress) override;
  // Gives memory back, too, when the plans that are left have a smaller budget.
  absl::Status Retire(int64_t epoch) override;
  bool Has(int64_t epoch) const override { return hot_pool_->Find(epoch) != nullptr; }
  absl::StatusOr<std::shared_ptr<void>> Map(const ColdSide& cold) override;
  absl::Status RunStep(const DeviceBatch& batch, const ColdSide& cold,
                       DeviceOutput* output) override;
  absl::Status ReadCounters(NeuronCounters* counters) override { return counters_->Read(counters); }

  // Of the last step, copied from the device, for tests: residual rows [rows, model_dim], and the
  // logits of its sampling rows.
  std::vector<float> Residual(int64_t rows) const;
  std::vector<float> Logits(int64_t rows) const;

 private:
  CudaDevice(const ModelFile& model, const CudaDeviceOptions& options);
  absl::Status Open();
  absl::Status Allocate();
  absl::Status AllocateHotPool();
  // Copies between slots, while steps run.
  absl::Status MoveBundle(int32_t from, int32_t to);
  absl::Status Publish(const std::shared_ptr<const EpochTables>& tables);
  // What the driver counts changes: with the hot pool, and as it loads late.
  void MeasureProcess();
  absl::Status Check(const DeviceBatch& batch) const;
  void FillInputs(const DeviceBatch& batch, const MappedCold* cold, const SlotRing& ring,
                  const LayerTable* tables, uint64_t nonce);
  absl::Status RunOnce(const DeviceBatch& batch, const MappedCold* cold, ColdLink* link,
                       const LayerTable* tables, uint64_t nonce);
  absl::Status AwaitStep(TimePoint deadline, ColdLink* link);
  absl::Status StepStatus() const;
  absl::Status Sample(const DeviceBatch& batch, DeviceOutput* output);
  // Whether a step of so many rows goes through matrix products.
  bool InProducts(int32_t rows, const MappedCold* cold) const;
  static size_t Bucket(int32_t rows);  // of product_levels_
  // Learns from a step that the cpu side shared.
  void ObserveCuts();
  PrefillPass::Step ProductStep(const DeviceBatch& batch, const MappedCold& cold, ColdLink* link);
  // What products need of the epoch's placement, kept while its steps follow each other.
  void Survey(const std::shared_ptr<const EpochTables>& epoch);
  // Adds the step to the counters, and its traced layers' times, of which `output` gets those asked
  // for.
  absl::Status Count(const DeviceBatch& batch, DeviceOutput* output);
  absl::StatusOr<std::span<const LayerTrace>> ReadTraces();
  std::shared_ptr<MappedCold> FindMapped(const ColdSide& cold);
  const StepState& state() const { return *results_.as<const StepState>(); }

  const ModelFile& model_;
  const ModelConfig config_;
  const BundleLayout layout_;
  const CudaDeviceOptions options_;
  const int32_t max_pages_;   // of a sequence
  const int32_t graph_rows_;  // of a step of the graph
  const int32_t max_logits_;  // rows of a step that sample
  const int32_t product_rows_;
  const int64_t logits_offset_;  // in results_, behind the state
  std::string name_, isa_;
  cudaStream_t stream_ = nullptr;       // of steps
  cudaStream_t copy_stream_ = nullptr;  // of everything else
  CudaWeights weights_;
  DeviceBytes kv_, work_memory_;
  PinnedBytes inputs_, results_, traces_, bounce_;
  StepBuffersCuda buffers_;
  StepInputs input_layout_;
  std::unique_ptr<StepGraph> graph_;
  std::unique_ptr<PrefillPass> prefill_;  // null: every step fits the graph
  std::unique_ptr<HotMemory> pool_memory_;
  std::unique_ptr<HotPool> hot_pool_;
  StepGate gate_;
  std::unique_ptr<HotPoolBudget> hot_budget_;
  std::unique_ptr<CudaTables> tables_;
  std::unique_ptr<CudaCounters> counters_;
  std::vector<CutController> cuts_;         // by layer
  std::vector<ShareLevel> product_levels_;  // by Bucket; none with a fixed share
  DeviceMemoryUse memory_;                  // fixed once loaded, but for:
  std::atomic<int64_t> process_bytes_ = 0;
  std::mutex mapped_mu_;
  std::vector<std::weak_ptr<MappedCold>> mapped_;
  std::weak_ptr<const EpochTables> surveyed_;
  std::vector<PrefillPass::Layer> survey_;
  // Of the running step.
  std::vector<LayerStep> layer_steps_;
  std::vector<uint8_t> asked_traces_;  // [num_layers]
  bool in_products_ = false, shared_ = false;
  double activity_ = 0;  // share of the neurons that a row of the last step needed
  int64_t page_tables_ = 0;
  int32_t num_logits_ = 0;
};

}  // namespace isotherm::gpu
