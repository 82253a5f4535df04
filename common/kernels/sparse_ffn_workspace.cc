#include "common/kernels/sparse_ffn_workspace.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/kernels/matrix_view.h"

namespace isotherm {
namespace {

absl::StatusOr<hwy::AlignedFreeUniquePtr<float[]>> Floats(int64_t rows, int64_t columns) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t count, CheckedMul<int64_t>(rows, columns));
  if (count > std::numeric_limits<int64_t>::max() / 8) {
    return absl::OutOfRangeError(absl::StrCat("workspace of ", count, " floats"));
  }
  auto floats = hwy::AllocateAligned<float>(static_cast<size_t>(count));
  if (floats == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", count * 4, " bytes of workspace"));
  }
  std::fill_n(floats.get(), count, 0.0f);
  return floats;
}

}  // namespace

SparseFfnWorkspace::SparseFfnWorkspace(const SparseFfnLimits& limits,
                                       std::unique_ptr<Shared> shared)
    : limits_(limits), shared_(std::move(shared)) {}

SparseFfnWorkspace::~SparseFfnWorkspace() = default;

absl::StatusOr<std::unique_ptr<SparseFfnWorkspace>> SparseFfnWorkspace::Create(
    const SparseFfnLimits& limits) {
  constexpr int64_t kMaxNeurons = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMaxDim = int64_t{1} << 32;
  if (limits.num_threads < 1 || limits.num_threads > kMaxSparseFfnThreads || limits.max_rows < 1 ||
      limits.max_rows > kMaxNeurons || limits.model_dim < 1 || limits.model_dim > kMaxDim ||
      limits.num_neurons < 1 || limits.num_neurons > kMaxNeurons) {
    return absl::InvalidArgumentError(absl::StrCat("workspace for ", limits.num_threads,
                                                   " threads, ", limits.max_rows, " rows of ",
                                                   limits.model_dim, ", ", limits.num_neurons,
                                                   " neurons; each must be at least 1, threads at "
                                                   "most ",
                                                   kMaxSparseFfnThreads));
  }
  auto shared = std::make_unique<Shared>();
  shared->padded_dim = RoundUp<int64_t>(limits.model_dim, 32);
  ISOTHERM_ASSIGN_OR_RETURN(shared->z, Floats(limits.max_rows, shared->padded_dim));
  shared->threads.resize(limits.num_threads);
  for (SparseFfnThread& thread : shared->threads) {
    ISOTHERM_ASSIGN_OR_RETURN(thread.sums, Floats(limits.max_rows, shared->padded_dim));
    ISOTHERM_ASSIGN_OR_RETURN(thread.decoded, Floats(4, shared->padded_dim));
    thread.ids.resize(limits.num_neurons);
    thread.rows.resize(limits.max_rows);
    thread.row_neurons.resize(limits.max_rows);
    thread.gates.resize(limits.max_rows * 4);
    thread.ups.resize(limits.max_rows * 4);
  }
  return std::unique_ptr<SparseFfnWorkspace>(new SparseFfnWorkspace(limits, std::move(shared)));
}

absl::Status ValidateSparseFfn(const SparseFfnParams& p) {
  const BundleView& b = p.bundles;
  const auto refuse = [](const auto&... text) {
    return absl::InvalidArgumentError(absl::StrCat("sparse FFN: ", text...));
  };
  ISOTHERM_RETURN_IF_ERROR(ValidateRowType(b.dtype, b.model_dim));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(b.dtype, b.model_dim));
  if (b.rows != 2 && b.rows != 3) return refuse("bundles of ", b.rows, " rows, built for 2 and 3");
  if (b.row_bytes < row_bytes || b.bundle_bytes / b.rows < b.row_bytes) {
    return refuse("row of ", b.row_bytes, " bytes in a bundle of ", b.bundle_bytes, "; ",
                  b.model_dim, " ", Name(b.dtype), " take ", row_bytes, " a row, ", b.rows,
                  " rows");
  }
  if (p.up_bias != nullptr && b.rows != 2) return refuse("up_bias with a gate, built without");
  if (p.activate_up && b.rows != 3) return refuse("activate_up without a gate");
  if (p.workspace == nullptr) return refuse("no workspace");
  const SparseFfnLimits& limits = p.workspace->limits();
  if (p.num_rows < 0 || p.num_rows > limits.max_rows || b.model_dim > limits.model_dim ||
      b.num_neurons < 0 || b.num_neurons > limits.num_neurons) {
    return refuse(p.num_rows, " rows of ", b.model_dim, ", ", b.num_neurons,
                  " neurons; the workspace is for ", limits.max_rows, " rows of ", limits.model_dim,
                  ", ", limits.num_neurons, " neurons");
  }
  if (p.first_neuron < 0 || p.first_neuron > p.last_neuron || p.last_neuron > b.num_neurons) {
    return refuse("neurons [", p.first_neuron, ", ", p.last_neuron, ") of ", b.num_neurons);
  }
  if ((p.hash == nullptr) != (p.work_hash == nullptr)) return refuse("hash without its result");
  if (p.num_rows == 0) return absl::OkStatus();
  const int inputs = (p.z_f16 != nullptr) + (p.z_bf16 != nullptr) + (p.z != nullptr);
  if (inputs != 1) return refuse(inputs, " inputs z are set, exactly one must be");
  if (p.partial == nullptr) return refuse("no partial to write");
  if (b.num_neurons > 0 && (p.active == nullptr || b.data == nullptr)) {
    return refuse("no bitmap or no bundles");
  }
  if (p.hash != nullptr && p.hash->row_keys == nullptr) return refuse("hash without row keys");
  return absl::OkStatus();
}

}  // namespace isotherm
