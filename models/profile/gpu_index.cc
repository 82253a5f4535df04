#include "models/profile/gpu_index.h"

#include <bit>
#include <cstddef>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_file.h"
#include "models/gguf/gguf_writer.h"
#include "models/gguf/printable.h"

namespace isotherm {
namespace {

constexpr char kArchitecture[] = "generic.gpu_index";
constexpr char kBlockCount[] = "generic.gpu_index.block_count";
constexpr char kCapacity[] = "split.vram_capacity";
constexpr int64_t kMaxIndexLayers = 1'024;
constexpr int64_t kMaxNeurons = int64_t{1} << 24;
constexpr uint32_t kI32 = 26;  // as GgufFile renumbers PowerInfer's 18

std::string Name(int64_t layer, absl::string_view what) {
  return absl::StrCat("blk.", layer, ".", what);
}

absl::StatusOr<std::vector<int32_t>> ReadInts(const GgufFile& file, const std::string& name) {
  const GgufTensor* tensor = file.FindTensor(name);
  if (tensor == nullptr || tensor->ggml_type != kI32 || tensor->num_dims != 1 ||
      tensor->shape[0] > kMaxNeurons) {
    return BadDataError(
        file.path(),
        absl::StrCat("tensor ", name, " is missing or not one row of up to ", kMaxNeurons, " I32"));
  }
  std::vector<int32_t> out(static_cast<size_t>(tensor->shape[0]));
  if (out.empty()) return out;
  ISOTHERM_RETURN_IF_ERROR(file.Read(*tensor, 0, std::as_writable_bytes(std::span(out))));
  return out;
}

absl::StatusOr<std::vector<uint64_t>> ReadLayer(const GgufFile& file, int64_t layer,
                                                int64_t num_neurons) {
  const std::string idx_name = Name(layer, "gpu_idx"), bucket_name = Name(layer, "gpu_bucket");
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> idx, ReadInts(file, idx_name));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> bucket, ReadInts(file, bucket_name));
  const auto neurons = static_cast<int64_t>(idx.size());
  if (num_neurons != 0 && neurons != num_neurons) {
    return BadDataError(file.path(), absl::StrCat("tensor ", idx_name, " has ", neurons,
                                                  " neurons, layer 0 ", num_neurons));
  }
  std::vector<uint64_t> hot(static_cast<size_t>(CeilDiv<int64_t>(neurons, 64)), 0);
  int64_t count = 0;
  for (int64_t n = 0; n < neurons; ++n) {
    const int32_t value = idx[static_cast<size_t>(n)];
    if (value != 0 && value != 1) {
      return BadDataError(file.path(), absl::StrCat("tensor ", idx_name, " has ", value,
                                                    " at neuron ", n, "; 0 or 1 wanted"));
    }
    if (value == 0) continue;
    hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
    ++count;
  }
  int64_t last = -1;
  for (const int32_t id : bucket) {
    if (id <= last || id >= neurons || (hot[static_cast<size_t>(id / 64)] >> (id % 64) & 1) == 0) {
      return BadDataError(file.path(),
                          absl::StrCat("tensor ", bucket_name, " has id ", id, " after ", last,
                                       "; ascending ids that ", idx_name, " marks are wanted"));
    }
    last = id;
  }
  if (static_cast<int64_t>(bucket.size()) != count) {
    return BadDataError(file.path(), absl::StrCat("tensor ", bucket_name, " has ", bucket.size(),
                                                  " ids, ", idx_name, " marks ", count));
  }
  return hot;
}

}  // namespace

absl::StatusOr<GpuIndex> ReadGpuIndex(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string architecture,
                            file->GetString("general.architecture"));
  if (!file->is_powerinfer() || architecture != kArchitecture) {
    return BadDataError(
        path, absl::StrCat("is not a GPU split: its architecture is '", Printable(architecture),
                           "', '", kArchitecture, "' under the magic PWRI is wanted"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t num_layers, file->GetInt(kBlockCount));
  if (num_layers < 1 || num_layers > kMaxIndexLayers) {
    return BadDataError(path,
                        absl::StrCat(kBlockCount, " is ", num_layers, "; 1 to ", kMaxIndexLayers));
  }
  if (static_cast<int64_t>(file->tensors().size()) != 2 * num_layers) {
    return BadDataError(path, absl::StrCat("has ", file->tensors().size(), " tensors, ", num_layers,
                                           " layers need ", 2 * num_layers));
  }
  GpuIndex index;
  ISOTHERM_ASSIGN_OR_RETURN(index.vram_capacity, file->GetInt(kCapacity));
  for (int64_t l = 0; l < num_layers; ++l) {
    ISOTHERM_ASSIGN_OR_RETURN(std::vector<uint64_t> hot, ReadLayer(*file, l, index.num_neurons));
    if (l == 0) index.num_neurons = file->FindTensor(Name(0, "gpu_idx"))->shape[0];
    index.hot.push_back(std::move(hot));
  }
  return index;
}

absl::Status WriteGpuIndex(const std::string& path, const GpuIndex& index) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer,
                            GgufWriter::Create(path, /*powerinfer=*/true));
  writer->AddString("general.architecture", kArchitecture);
  writer->AddUint32(kBlockCount, static_cast<uint32_t>(index.hot.size()));
  writer->AddUint64(kCapacity, static_cast<uint64_t>(index.vram_capacity));
  std::vector<std::vector<int32_t>> idx(index.hot.size()), bucket(index.hot.size());
  for (size_t l = 0; l < index.hot.size(); ++l) {
    for (int64_t n = 0; n < index.num_neurons; ++n) {
      const bool hot = (index.hot[l][static_cast<size_t>(n / 64)] >> (n % 64) & 1) != 0;
      idx[l].push_back(hot ? 1 : 0);
      if (hot) bucket[l].push_back(static_cast<int32_t>(n));
    }
    const auto layer = static_cast<int64_t>(l);
    writer->DeclareInts(Name(layer, "gpu_idx"), static_cast<int64_t>(idx[l].size()));
    writer->DeclareInts(Name(layer, "gpu_bucket"), static_cast<int64_t>(bucket[l].size()));
  }
  for (size_t l = 0; l < idx.size(); ++l) {
    ISOTHERM_RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(idx[l]))));
    ISOTHERM_RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(bucket[l]))));
  }
  return writer->Finish();
}

bool IsGpuIndex(const std::string& path) {
  const auto file = GgufFile::Open(path);
  return file.ok() && (*file)->is_powerinfer() &&
         (*file)->GetString("general.architecture").value_or("") == kArchitecture;
}

}  // namespace isotherm
