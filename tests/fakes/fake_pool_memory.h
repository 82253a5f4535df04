#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/base/checked_math.h"
#include "gpu_worker/device_shortage.h"
#include "gpu_worker/engine/pool_memory.h"

namespace isotherm::gpu {

// Memory taken in steps and given back in chunks, as a GPU's. What is not there reads as 0xff, and
// again when it comes back. Others can hold some of the device's; not thread-safe.
class FakePoolMemory final : public PoolMemory {
 public:
  static constexpr int kNothing = 0xff;

  FakePoolMemory(int64_t reserved, int64_t step, int64_t chunk)
      : step_(step), chunk_(chunk), storage_(static_cast<size_t>(RoundUp(reserved, step))) {
    std::memset(storage_.data(), kNothing, storage_.size());
    device_bytes_ = static_cast<int64_t>(storage_.size());
  }

  absl::Status Resize(int64_t bytes) override {
    ++resizes_;
    const int64_t wanted = SizeAfter(bytes), before = bytes_;
    while (bytes_ < wanted) {
      const int64_t chunk = std::min(chunk_, wanted - bytes_);
      if (bytes_ + chunk > device_bytes_ - held_by_others_) {
        return ShortageStatus({.what = "the hot pool",
                               .needed_bytes = wanted - before,
                               .free_bytes = device_bytes_ - held_by_others_ - before,
                               .total_bytes = device_bytes_,
                               .remedy = "ask for less"});
      }
      chunks_.push_back(chunk);
      bytes_ += chunk;
    }
    while (bytes_ > wanted) {
      if (broken_) return absl::InternalError("the driver does not unmap");
      bytes_ -= chunks_.back();
      chunks_.pop_back();
    }
    std::memset(storage_.data() + bytes_, kNothing, storage_.size() - static_cast<size_t>(bytes_));
    return absl::OkStatus();
  }
  int64_t SizeAfter(int64_t bytes) const override {
    const int64_t wanted =
        RoundUp(std::clamp<int64_t>(bytes, 0, static_cast<int64_t>(storage_.size())), step_);
    int64_t size = bytes_;
    for (auto chunk = chunks_.rbegin(); chunk != chunks_.rend() && size - *chunk >= wanted; ++chunk)
      size -= *chunk;
    return std::max(size, wanted);
  }
  int64_t bytes() const override { return bytes_; }

  std::byte* data() { return storage_.data(); }
  int resizes() const { return resizes_; }
  void HoldByOthers(int64_t bytes) { held_by_others_ = bytes; }
  void Break(bool broken) { broken_ = broken; }

 private:
  const int64_t step_, chunk_;
  std::vector<std::byte> storage_;
  std::vector<int64_t> chunks_;
  int64_t bytes_ = 0, device_bytes_ = 0, held_by_others_ = 0;
  int resizes_ = 0;
  bool broken_ = false;
};

}  // namespace isotherm::gpu
