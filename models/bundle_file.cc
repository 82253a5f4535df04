#include "models/bundle_file.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/bundle_layout.h"

namespace isotherm {
namespace {

std::string TensorName(int64_t layer, absl::string_view stem) {
  return absl::StrCat("blk.", layer, ".", stem, ".weight");
}

bool IsBundleOrdered(const GgufFile& file, int64_t num_layers) {
  if (file.Has(kBundleRowsKey)) return true;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (file.FindTensor(TensorName(layer, "ffn_bundle")) != nullptr) return true;
  }
  return false;
}

absl::Status CheckKeys(const GgufFile& file, const ModelConfig& config) {
  const int rows = config.bundle_rows();
  if (!file.is_powerinfer()) {
    return BadDataError(file.path(), "a bundle-ordered model has the magic PWRI, this file GGUF");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t stored, file.GetInt(kBundleRowsKey));
  if (stored != rows) {
    return BadDataError(file.path(),
                        absl::StrCat("key ", kBundleRowsKey, " is ", stored, "; a neuron of ",
                                     config.architecture_name, " has ", rows, " rows"));
  }
  const absl::StatusOr<int64_t> alignment = file.GetInt(kAlignmentKey);
  if (!alignment.ok() || *alignment % kBundleAlignment != 0) {
    return BadDataError(
        file.path(), absl::StrCat(kAlignmentKey, " is ",
                                  alignment.ok() ? absl::StrCat(*alignment) : "absent, so 32",
                                  "; bundles that are computed from in place need a multiple of ",
                                  kBundleAlignment));
  }
  return absl::OkStatus();
}

absl::StatusOr<const GgufTensor*> CheckLayer(const GgufFile& file, const ModelConfig& config,
                                             int64_t layer) {
  const std::string name = TensorName(layer, "ffn_bundle");
  const GgufTensor* tensor = file.FindTensor(name);
  if (tensor == nullptr) {
    return BadDataError(
        file.path(),
        absl::StrCat("tensor ", name, " is missing, of a file whose neurons are in bundle order"));
  }
  for (const char* stem : {"ffn_gate", "ffn_up", "ffn_down", "ffn_down_t"}) {
    if (file.FindTensor(TensorName(layer, stem)) != nullptr) {
      return BadDataError(file.path(),
                          absl::StrCat("tensors ", name, " and ", TensorName(layer, stem),
                                       " both hold the layer's neurons; one of them must go"));
    }
  }
  const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor->ggml_type);
  if (!dtype.ok() || (*dtype != DType::kF16 && *dtype != DType::kBF16 && *dtype != DType::kQ8_0 &&
                      *dtype != DType::kQ4_0)) {
    return BadDataError(file.path(), absl::StrCat("tensor ", name, " has type ",
                                                  dtype.ok() ? std::string(Name(*dtype))
                                                             : absl::StrCat(tensor->ggml_type),
                                                  "; bundles are F16, BF16, Q8_0 or Q4_0"));
  }
  ISOTHERM_RETURN_IF_ERROR(RowBytes(*dtype, config.model_dim).status());
  const int64_t columns = BundleColumns(*dtype, config.bundle_rows(), config.model_dim);
  const auto& shape = tensor->shape;
  if (shape[0] != columns || shape[1] != config.ffn_dim || shape[2] != 1 || shape[3] != 1) {
    return BadDataError(file.path(),
                        absl::StrCat("tensor ", name, " is [", absl::StrJoin(shape, ", "), "]; [",
                                     columns, ", ", config.ffn_dim, "] is wanted"));
  }
  return tensor;
}

}  // namespace

absl::StatusOr<std::optional<BundleFile>> ReadBundleFile(const GgufFile& file,
                                                         const ModelConfig& config) {
  if (!IsBundleOrdered(file, config.num_layers)) return std::nullopt;
  ISOTHERM_RETURN_IF_ERROR(CheckKeys(file, config));
  BundleFile bundles;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(const GgufTensor* tensor, CheckLayer(file, config, layer));
    const auto dtype = static_cast<DType>(tensor->ggml_type);
    if (layer == 0) {
      bundles.dtype = dtype;
      ISOTHERM_ASSIGN_OR_RETURN(bundles.bundle_bytes, RowBytes(dtype, tensor->columns()));
    } else if (dtype != bundles.dtype) {
      return BadDataError(
          file.path(), absl::StrCat("tensor ", tensor->name, " is ", Name(dtype), ", layer 0 ",
                                    Name(bundles.dtype), "; all layers' bundles are of one type"));
    }
    bundles.layer_offsets.push_back(tensor->offset);
  }
  return bundles;
}

}  // namespace isotherm
