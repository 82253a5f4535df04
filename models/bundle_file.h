#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"
#include "models/gguf/gguf_file.h"
#include "models/model_config.h"

namespace isotherm {

// What a bundle-ordered model file adds: instead of gate, up and down a layer has one tensor
// "blk.N.ffn_bundle.weight" of the neurons' bundles (BundleColumns() elements each), so that
// workers compute from the mapped file.
struct BundleFile {
  DType dtype = DType::kF16;
  int64_t bundle_bytes = 0;            // a multiple of 64
  std::vector<int64_t> layer_offsets;  // of each layer's tensor in the file, multiples of 4096
};

inline constexpr char kAlignmentKey[] = "general.alignment";
inline constexpr char kBundleRowsKey[] = "isotherm.bundle_rows";
inline constexpr int64_t kBundleAlignment = 4096;

// Nothing for a file that has neither the key isotherm.bundle_rows nor such a tensor. DataLoss
// (exit code 65) names what is wrong: the key, general.alignment, a tensor that is missing,
// misshapen, of another type than the first layer's or of one that nobody computes with as stored,
// or gate, up or down tensors beside.
absl::StatusOr<std::optional<BundleFile>> ReadBundleFile(const GgufFile& file,
                                                         const ModelConfig& config);

}  // namespace isotherm
