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

// A step of a batch on one CUDA device. Small batches run as one captured graph, and one whose
// tokens are sampled here may be queued behind the step that samples them; see Device for the
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
  void Settle() override;
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

  // A step from its launch to its end. Two may be under way.
  struct Flight {
    int place = 0;  // of places_
    std::shared_ptr<const EpochTables> epoch;
    const LayerTable* tables = nullptr;
    std::shared_ptr<MappedCold> mapped;
    ColdLink* link = nullptr;  // alive when the step was planned
    bool decode = false;       // every row samples
    bool in_products = false;
    bool ring = false;          // the device posts to the cpu side: at least the step's end,
    bool shared = false;        // and layers
    bool timed = false;         // for the counters
    bool host_samples = false;  // some row's logits are read by the host
    bool withdrawn = false;     // it may have been too late
    int32_t number = 0;         // StepHeader
    int32_t num_rows = 0, num_exact = 0;
    int32_t num_logits = 0;
    int64_t page_tables = 0;
    std::chrono::nanoseconds time{};  // that it has
    std::vector<LayerStep> layers;
    std::vector<int32_t> asked_flags;  // of layers, as the batch asks

    bool traced() const;
  };
  // What a step under way has to itself on the host. Pinned.
  struct Place {
    PinnedBytes inputs, results, traces;
    cudaEvent_t done = nullptr;
  };

  // Everything that indexes memory later. `follows`: tokens may be those that are sampled ahead.
  absl::Status Check(const DeviceBatch& batch, bool follows) const;
  absl::StatusOr<std::unique_ptr<Flight>> Plan(const DeviceBatch& batch, const ColdSide& cold);
  static std::vector<int32_t> AskedFlags(const DeviceBatch& batch, size_t num_layers);
  void FillLayers(Flight* flight) const;
  void FillInputs(const DeviceBatch& batch, const DeviceBatch* ahead, Flight* flight);
  // ahead: the batch under way that this one follows on the device; null: none.
  absl::Status Launch(const DeviceBatch& batch, const DeviceBatch* ahead, Flight* flight);
  absl::Status Finish(const Flight& flight, TimePoint deadline);
  // Inside the gate. flight: launched already, or null.
  absl::Status RunInGate(const DeviceBatch& batch, const ColdSide& cold,
                         std::unique_ptr<Flight> flight, DeviceOutput* output);
  // Whether `batch` is what was begun ahead of its time.
  bool IsAhead(const DeviceBatch& batch, const ColdSide& cold) const;
  // Queues the next batch behind `flight`, if it can run without the host between them.
  void BeginNext(const DeviceBatch& batch, const ColdSide& cold, const Flight& flight);
  void DropAhead();
  // Tells the device not to begin that step, since somebody waits to work between two.
  void WithdrawAhead();
  absl::Status AwaitStep(const Flight& flight, TimePoint deadline);
  static absl::Status StepStatus(const StepState& state);
  absl::Status Sample(const DeviceBatch& batch, const Flight& flight, DeviceOutput* output);
  // Whether a step of so many rows goes through matrix products.
  bool InProducts(int32_t rows, const MappedCold* cold) const;
  static size_t Bucket(int32_t rows);  // of product_levels_
  // Learns from a step that the cpu side shared.
  void ObserveCuts(const Flight& flight);
  PrefillPass::Step ProductStep(const DeviceBatch& batch, const Flight& flight);
  // What products need of the epoch's placement, kept while its steps follow each other.
  void Survey(const std::shared_ptr<const EpochTables>& epoch);
  // Adds the step's rows to the counters, and its traced layers' times, of which `output` gets
  // those asked for.
  void Count(const Flight& flight, DeviceOutput* output);
  void CountRows(const Flight& flight);
  // Of the layer: how many rows of the step do without its predictor.
  int64_t ExactRows(const Flight& flight, size_t layer) const;
  std::shared_ptr<MappedCold> FindMapped(const ColdSide& cold) const;
  const StepState& StateOf(const Flight& flight) const {
    return *places_[flight.place].results.as<const StepState>();
  }
  const LayerTimes* TimesOf(int place) const {
    return reinterpret_cast<const LayerTimes*>(places_[place].results.as<const StepState>() + 1);
  }
  const int32_t* TokensOf(int place) const {
    return reinterpret_cast<const int32_t*>(TimesOf(place) + config_.num_layers);
  }

  const ModelFile& model_;
  const ModelConfig config_;
  const BundleLayout layout_;
  const CudaDeviceOptions options_;
  const int32_t max_pages_;   // of a sequence
  const int32_t graph_rows_;  // of a step of the graph
  const int32_t max_logits_;  // rows of a step that sample
  const int32_t product_rows_;
  std::string name_, isa_;
  cudaStream_t stream_ = nullptr;       // of steps
  cudaStream_t copy_stream_ = nullptr;  // of everything else
  CudaWeights weights_;
  DeviceBytes kv_, work_memory_;
  Place places_[2];
  PinnedBytes logits_;  // of rows that the host samples
  PinnedBytes bounce_;
  PinnedBytes withdrawn_;  // a step's number, read by the device
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
  mutable std::mutex mapped_mu_;
  std::vector<std::weak_ptr<MappedCold>> mapped_;
  std::weak_ptr<const EpochTables> surveyed_;
  std::vector<PrefillPass::Layer> survey_;
  double activity_ = 0;  // share of the neurons that a row of the last step needed
  // Holds the gate from the first step under way to the last.
  std::unique_ptr<StepGate::Step> in_gate_;
  std::unique_ptr<Flight> ahead_;  // begun before its call; goes before the gate does
  int next_place_ = 0;
  int32_t last_number_ = 0;
};

}  // namespace isotherm::gpu
