#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/engine/pool_memory.h"

namespace isotherm::gpu {

// The hot pool's memory: one range of addresses for as long as it lives, of which a growing or
// shrinking front has memory behind it. So captured graphs and tables keep their addresses while
// the budget changes. Not thread-safe, but for data().
class HotMemory final : public PoolMemory {
 public:
  // Reserves addresses for `most_bytes`; takes no memory.
  static absl::StatusOr<std::unique_ptr<HotMemory>> Reserve(int device, int64_t most_bytes);
  ~HotMemory() override;
  HotMemory(const HotMemory&) = delete;
  HotMemory& operator=(const HotMemory&) = delete;

  // Memory is taken in steps of granularity() and given back to the driver in chunks. Giving back
  // waits for the device first, so never during a step. ResourceExhausted when the device is short.
  absl::Status Resize(int64_t bytes) override;
  int64_t SizeAfter(int64_t bytes) const override;

  unsigned char* data() const { return reinterpret_cast<unsigned char*>(base_); }
  int64_t bytes() const override { return bytes_; }
  int64_t granularity() const { return granularity_; }

 private:
  HotMemory() = default;
  struct Chunk {
    CUmemGenericAllocationHandle handle;
    int64_t bytes;
  };
  absl::Status Shrink(int64_t wanted);
  absl::Status Grow(int64_t wanted);
  absl::Status AddChunk(int64_t bytes);

  int device_ = 0;
  CUdeviceptr base_ = 0;
  int64_t reserved_ = 0, bytes_ = 0, granularity_ = 0, chunk_bytes_ = 0;
  std::vector<Chunk> chunks_;
};

}  // namespace isotherm::gpu
