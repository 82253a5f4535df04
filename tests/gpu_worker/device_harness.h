#pragma once

#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gpu_worker/host/owned_neurons.h"
#include "gtest/gtest.h"
#include "models/model_file.h"
#ifdef ISOTHERM_TEST_CUDA
#include "gpu_worker/cuda/cuda_device.h"
#else
#include "gpu_worker/host/host_device.h"
#endif

// Without a GPU the tests of the CUDA backend are skipped, and say so.
#ifdef ISOTHERM_TEST_CUDA
#define ISOTHERM_SKIP_WITHOUT_DEVICE() \
  if (!::isotherm::gpu::HasCudaDevice()) GTEST_SKIP() << "no CUDA GPU on this machine"
#else
#define ISOTHERM_SKIP_WITHOUT_DEVICE() static_assert(true)
#endif

namespace isotherm::gpu {

// The backend that the tests of this folder are compiled for; each is compiled once for each.
struct TestedDevice {
#ifdef ISOTHERM_TEST_CUDA
  using Type = CudaDevice;
  static constexpr bool kCuda = true;
  static inline double streamed_share = -1;  // of the devices that are made next
  static absl::StatusOr<std::unique_ptr<Type>> Make(const ModelFile& model, int num_threads) {
    return CudaDevice::Create(model, {.kv_pages = 256,
                                      .max_rows = 64,
                                      .stored_predictor = true,
                                      .streamed_share = streamed_share});
  }
  static std::vector<float> Residual(const Type& device, int64_t rows) {
    return device.Residual(rows);
  }
  static std::vector<float> Logits(const Type& device, int64_t rows) { return device.Logits(rows); }
#else
  using Type = HostDevice;
  static constexpr bool kCuda = false;
  static inline double streamed_share = -1;  // the host backend has no such choice
  static absl::StatusOr<std::unique_ptr<Type>> Make(const ModelFile& model, int num_threads) {
    const BundleLayout& layout = model.bundle_layout();
    return HostDevice::Create(model,
                              {.num_threads = num_threads,
                               .kv_pages = 256,
                               .max_rows = 64,
                               .hot_capacity_bytes = layout.layer_bytes() * layout.num_layers});
  }
  static std::vector<float> Residual(const Type& device, int64_t rows) {
    return {device.residual().begin(), device.residual().end()};
  }
  static std::vector<float> Logits(const Type& device, int64_t rows) { return device.logits(); }
#endif
};

// A device over a model file with all neurons at hand, driven row by row.
class DeviceHarness {
 public:
  explicit DeviceHarness(const std::string& path, int num_threads = 2, double hot_share = 0,
                         uint64_t seed = 1, const ModelOptions& options = {}) {
    auto model = ModelFile::Open(path, options);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto store = OwnedNeurons::Load(*model_);
    EXPECT_TRUE(store.ok()) << store.status();
    neurons_ = *std::move(store);
    auto device = TestedDevice::Make(*model_, num_threads);
    EXPECT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    auto mapping = device_->Map({.arena = neurons_.get()});
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    mapping_ = *std::move(mapping);
    if (hot_share > 0) SetHot(1, hot_share, seed);
  }

  // A random `share` of each layer's neurons is hot under `epoch`, which is used from now on.
  void SetHot(int64_t epoch, double share, uint64_t seed) {
    std::mt19937_64 rng(seed);
    const BundleLayout& layout = model_->bundle_layout();
    PlacementPlan plan{.epoch = epoch};
    for (int64_t l = 0; l < layout.num_layers; ++l) {
      LayerPlacement layer{.num_neurons = layout.num_neurons};
      layer.hot.assign(static_cast<size_t>((layout.num_neurons + 63) / 64), 0);
      for (int64_t n = 0; n < layout.num_neurons; ++n) {
        if (static_cast<double>(rng() % 1000) >= share * 1000) continue;
        layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
        ++layer.num_hot;
      }
      plan.layers.push_back(std::move(layer));
    }
    UsePlan(plan, seed % 2 != 0);
  }
  // Neurons come from the model file, or from the mapped neurons.
  void UsePlan(const PlacementPlan& plan, bool from_neurons = false) {
    const absl::Status status = device_->Prepare(plan, from_neurons ? neurons_.get() : nullptr, {});
    EXPECT_TRUE(status.ok()) << status;
    epoch_ = plan.epoch;
  }

  // From now on cold neurons go to `link`, as far as it lives; null: all are computed here.
  void SetLink(ColdLink* link) {
    link_ = link;
    mapping_.reset();  // memory is pinned once at a time
    auto mapping = device_->Map({.link = link, .arena = neurons_.get()});
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    mapping_ = *std::move(mapping);
  }

  // Runs `ids` at positions first.. of one sequence; returns the token sampled after the last.
  TokenId Feed(const std::vector<TokenId>& ids, int32_t first, const std::vector<int32_t>& pages,
               SamplingState* sampling, bool exact = false) {
    std::vector<DeviceRow> rows;
    for (size_t i = 0; i < ids.size(); ++i) {
      rows.push_back({.token = ids[i],
                      .position = first + static_cast<int32_t>(i),
                      .pages = pages,
                      .exact = exact,
                      .sampling = i + 1 == ids.size() ? sampling : nullptr});
    }
    return Run(rows);
  }
  TokenId Run(const std::vector<DeviceRow>& rows) {
    const absl::Status status =
        device_->RunStep({.step_id = step_id_++,
                          .epoch = epoch_,
                          .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
                          .rows = rows},
                         {.link = link_, .arena = neurons_.get()}, &output_);
    EXPECT_TRUE(status.ok()) << status;
    // With a link that lives the cpu_worker reports its part to the gateway itself.
    if (link_ == nullptr || output_.cpu_recomputed) {
      EXPECT_EQ(output_.owed_hash, output_.work_hash);
    }
    return output_.samples.empty() ? -1 : output_.samples.back().token;
  }

  // Greedy continuation, the prompt fed in chunks of `chunk`.
  std::vector<TokenId> Greedy(const std::vector<TokenId>& prompt, size_t steps, bool exact = false,
                              size_t chunk = 32) {
    SamplingState greedy({.params = {.temperature = 0}});
    std::vector<int32_t> pages(16);
    std::iota(pages.begin(), pages.end(), 0);
    std::vector<TokenId> out;
    for (size_t at = 0; at < prompt.size(); at += chunk) {
      const std::vector<TokenId> piece(
          prompt.begin() + static_cast<int64_t>(at),
          prompt.begin() + static_cast<int64_t>(std::min(prompt.size(), at + chunk)));
      const bool last = at + chunk >= prompt.size();
      const TokenId token =
          Feed(piece, static_cast<int32_t>(at), pages, last ? &greedy : nullptr, exact);
      if (last) out.push_back(token);
    }
    while (out.size() < steps) {
      out.push_back(Feed({out.back()}, static_cast<int32_t>(prompt.size() + out.size() - 1), pages,
                         &greedy, exact));
    }
    return out;
  }

  TestedDevice::Type& device() { return *device_; }
  // Of the last step's rows, and of those that sampled.
  std::vector<float> Residual(int64_t rows) const { return TestedDevice::Residual(*device_, rows); }
  std::vector<float> Logits() const {
    return TestedDevice::Logits(*device_, static_cast<int64_t>(output_.samples.size()));
  }
  const ModelFile& model() const { return *model_; }
  const DeviceOutput& output() const { return output_; }
  const OwnedNeurons& neurons() const { return *neurons_; }

 private:
  std::unique_ptr<ModelFile> model_;
  std::unique_ptr<OwnedNeurons> neurons_;
  std::unique_ptr<TestedDevice::Type> device_;
  std::shared_ptr<void> mapping_;
  DeviceOutput output_;
  ColdLink* link_ = nullptr;
  int64_t epoch_ = kBuiltInEpoch;
  int64_t step_id_ = 1;
};

}  // namespace isotherm::gpu
