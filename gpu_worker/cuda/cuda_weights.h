#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/device_matrix.h"
#include "gpu_worker/cuda/kernels/kernels.h"
#include "models/model_file.h"

namespace isotherm::gpu {

struct CudaWeightsOptions {
  bool stored_predictor = false;  // keep the file's type instead of 8 bits
};

// Everything of a model but its neurons in device memory; the embedding's rows in page-locked host
// memory, of which a token reads one.
struct CudaWeights {
  struct Layer {
    const float* attn_norm = nullptr;
    const float* ffn_norm = nullptr;
    DeviceMatrix qkv, o;
    DeviceMatrix fc1, fc2;  // no rows: no predictor
  };
  std::vector<Layer> layers;
  const float* output_norm = nullptr;
  DeviceMatrix head;
  DType embedding_type = DType::kF16;
  int64_t embedding_row_bytes = 0;
  PinnedBytes embedding;
  std::vector<double> rope_frequencies;
  std::vector<DeviceBytes> storage;
  int64_t dense_bytes = 0, predictor_bytes = 0, head_bytes = 0;

  // Matrix by matrix, so that the host never holds them all. `progress`: share done, 0 to 1.
  static absl::StatusOr<CudaWeights> Load(const ModelFile& model, const CudaWeightsOptions& options,
                                          const std::function<void(double)>& progress);
};

}  // namespace isotherm::gpu
