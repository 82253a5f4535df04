#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace isotherm {

// PowerInfer's choice of hot neurons: `<model>.generated.gpuidx`. Nothing in it names a model, so
// that it can only be a proposal.
struct GpuIndex {
  int64_t vram_capacity = 0;               // bytes that it was solved for
  int64_t num_neurons = 0;                 // of a layer
  std::vector<std::vector<uint64_t>> hot;  // [num_layers][ceil(num_neurons / 64)]
};

// Reads pairs by name: `blk.N.gpu_idx` (I32 [num_neurons], 1 = on the GPU) and `blk.N.gpu_bucket`
// (I32 [k], those ids ascending). DataLoss (exit code 65) for a file of another kind, a layer that
// is missing, of another length or whose two tensors name different sets.
absl::StatusOr<GpuIndex> ReadGpuIndex(const std::string& path);

// Writes pairs in layer order, as PowerInfer reads them.
absl::Status WriteGpuIndex(const std::string& path, const GpuIndex& index);

// Whether the file is one, by its magic and architecture; false for what cannot be read.
bool IsGpuIndex(const std::string& path);

}  // namespace isotherm
