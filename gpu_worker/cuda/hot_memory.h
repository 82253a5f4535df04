#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

namespace isotherm::gpu {

// The hot pool's memory: one range of addresses for as long as it lives, of which a growing or
// shrinking front has memory behind it. So captured graphs and tables keep their addresses while
// the budget changes. Not thread-safe.
class HotMemory {
 public:
  // Reserves addresses for `most_bytes`; takes no memory.
  static absl::StatusOr<std::unique_ptr<HotMemory>> Reserve(int device, int64_t most_bytes);
  ~HotMemory();
  HotMemory(const HotMemory&) = delete;
  HotMemory& operator=(const HotMemory&) = delete;

  // Makes the front at most `bytes` long, in steps of granularity(). Growing zeroes nothing;
  // shrinking waits for the device, so never during a step. ResourceExhausted when the device is
  // short, with what could be had kept.
  absl::Status Resize(int64_t bytes);

  unsigned char* data() const { return reinterpret_cast<unsigned char*>(base_); }
  int64_t bytes() const { return bytes_; }
  int64_t granularity() const { return granularity_; }

 private:
  HotMemory() = default;
  struct Chunk {
    CUmemGenericAllocationHandle handle;
    int64_t bytes;
  };
  int device_ = 0;
  CUdeviceptr base_ = 0;
  int64_t reserved_ = 0, bytes_ = 0, granularity_ = 0;
  std::vector<Chunk> chunks_;
};

}  // namespace isotherm::gpu
