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
  // Null bias: none.
  struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
  };
  struct Layer {
    Norm attention_norm, ffn_norm;
    DeviceMatrix qkv, o;
    const float *qkv_bias = nullptr, *o_bias = nullptr;
    const float *up_bias = nullptr, *down_bias = nullptr;
    DeviceMatrix fc1, fc2;  // no rows: no predictor
  };
  std::vector<Layer> layers;
  Norm output_norm;
  DeviceMatrix head;
  // Rows in host memory that the device reads, in the file's blocks.
  struct HostRows {
    DType dtype = DType::kF16;
    int64_t row_bytes = 0;
    PinnedBytes memory;  // empty: none
  };
  HostRows embedding, positions;
  std::vector<double> rope_frequencies;
  std::vector<DeviceBytes> storage;
  int64_t dense_bytes = 0, predictor_bytes = 0, head_bytes = 0;

  // Matrix by matrix, so that the host never holds them all. `progress`: share done, 0 to 1.
  static absl::StatusOr<CudaWeights> Load(const ModelFile& model, const CudaWeightsOptions& options,
                                          const std::function<void(double)>& progress);
};

}  // namespace isotherm::gpu
