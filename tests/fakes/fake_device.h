#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "gpu_worker/device.h"

namespace isotherm::gpu {

// A device without tensors: a row's token is NextToken of what was fed. Records every batch; can
// be held inside a step and told to fail. Thread-safe.
class FakeDevice final : public Device {
 public:
  struct Row {
    TokenId token;
    int32_t position;
    size_t num_pages;
    bool exact;
    bool sample;
    int32_t num_sampled;  // before this step; -1: the row does not sample
    bool operator==(const Row&) const = default;
  };
  struct Step {
    int64_t step_id;
    int64_t epoch;
    std::vector<Row> rows;
    std::vector<LayerRange> layers;
    TimePoint deadline;
    std::vector<Row> next;  // rows of the batch that it was told comes next
  };

  static TokenId NextToken(TokenId token, int32_t position) {
    return (token * 31 + position * 7 + 3) % 1000;
  }

  explicit FakeDevice(int32_t kv_pages = 64) : kv_pages_(kv_pages) {}

  DeviceInfo Describe() const override {
    std::lock_guard lock(mu_);
    return {.name = "fake",
            .hot_used_bytes = hot_used_bytes_,
            .kv_pages = kv_pages_,
            .max_rows = 8,
            .shares_memory = true};
  }
  absl::Status Prepare(const PlacementPlan& plan, const NeuronStore* source,
                       const std::function<void(int64_t, int64_t)>&) override {
    std::lock_guard lock(mu_);
    if (lost_) return absl::InternalError("lost");
    prepared_.insert(plan.epoch);
    source_ = source;
    return absl::OkStatus();
  }
  absl::Status Retire(int64_t epoch) override {
    std::lock_guard lock(mu_);
    return prepared_.erase(epoch) > 0 ? absl::OkStatus() : absl::NotFoundError("not prepared");
  }
  bool Has(int64_t epoch) const override {
    std::lock_guard lock(mu_);
    return epoch == kBuiltInEpoch || prepared_.contains(epoch);
  }
  void SetShares(int64_t hot_capacity_bytes, int32_t kv_pages) override {
    std::lock_guard lock(mu_);
    shares_.emplace_back(hot_capacity_bytes, kv_pages);
    changed_.notify_all();
  }
  absl::Status RunStep(const DeviceBatch& batch, const ColdSide&, DeviceOutput* output) override {
    std::unique_lock lock(mu_);
    Step step{.step_id = batch.step_id,
              .epoch = batch.epoch,
              .layers = {batch.layers.begin(), batch.layers.end()},
              .deadline = batch.deadline};
    *output = DeviceOutput();
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      const DeviceRow& row = batch.rows[r];
      step.rows.push_back({row.token, row.position, row.pages.size(), row.exact,
                           row.sampling != nullptr,
                           row.sampling != nullptr ? row.sampling->num_sampled() : -1});
      if (row.sampling == nullptr) continue;
      // The state counts the token as it would with real logits.
      const TokenId token = NextToken(row.token, row.position);
      std::vector<float> logits(1000);
      logits[static_cast<size_t>(token)] = 10;
      DeviceSample sample{.row = static_cast<int64_t>(r)};
      sample.token = row.sampling->Sample(logits, &sample.logprobs);
      output->samples.push_back(sample);
    }
    if (batch.next != nullptr) {
      for (const DeviceRow& row : batch.next->rows)
        step.next.push_back({row.token, row.position, row.pages.size(), row.exact, true, 0});
      output->next_begun = begins_next_;
    }
    steps_.push_back(std::move(step));
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    return std::exchange(next_status_, absl::OkStatus());
  }

  void Settle() override {
    std::lock_guard lock(mu_);
    ++num_settled_;
    changed_.notify_all();
  }
  // Every next batch is begun early, it says.
  void BeginNext() {
    std::lock_guard lock(mu_);
    begins_next_ = true;
  }
  void AwaitSettled(int count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return num_settled_ >= count; });
  }

  // Steps that start from now on stay inside RunStep until Release().
  void Hold() {
    std::lock_guard lock(mu_);
    held_ = true;
  }
  void Release() {
    std::lock_guard lock(mu_);
    held_ = false;
    changed_.notify_all();
  }
  void FailNextStep(absl::Status status) {
    std::lock_guard lock(mu_);
    next_status_ = std::move(status);
  }
  // Everything fails from now on.
  void Lose() {
    std::lock_guard lock(mu_);
    lost_ = true;
    next_status_ = absl::InternalError("lost");
  }
  bool Lost() const override {
    std::lock_guard lock(mu_);
    return lost_;
  }
  void AwaitSteps(size_t count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return steps_.size() >= count; });
  }
  std::vector<Step> steps() const {
    std::lock_guard lock(mu_);
    return steps_;
  }
  void SetHotUsed(int64_t bytes) {
    std::lock_guard lock(mu_);
    hot_used_bytes_ = bytes;
  }
  // (hot capacity, KV pages), the `count`-th that SetShares() was told.
  std::pair<int64_t, int32_t> AwaitShares(size_t count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return shares_.size() >= count; });
    return shares_[count - 1];
  }
  size_t num_shares() const {
    std::lock_guard lock(mu_);
    return shares_.size();
  }
  const NeuronStore* source() const {
    std::lock_guard lock(mu_);
    return source_;
  }

 private:
  const int32_t kv_pages_;
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::set<int64_t> prepared_;
  std::vector<Step> steps_;
  const NeuronStore* source_ = nullptr;
  int64_t hot_used_bytes_ = 0;
  std::vector<std::pair<int64_t, int32_t>> shares_;
  bool held_ = false, lost_ = false, begins_next_ = false;
  int num_settled_ = 0;
  absl::Status next_status_;
};

}  // namespace isotherm::gpu
