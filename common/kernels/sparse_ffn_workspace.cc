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

constexpr int64_t kMostLanes = 16;  // floats in the widest vector

// Whole blocks of columns, and long rows a block off a multiple of 4 KiB: the same columns of all
// rows, which are used together, would otherwise fall into the same few sets of the L1 cache.
int64_t RowStride(int64_t model_dim) {
  constexpr int64_t kPageFloats = 1024, kBlockFloats = 128;
  if (model_dim < kPageFloats) return RoundUp<int64_t>(model_dim, 32);
  return RoundUp<int64_t>(model_dim, kPageFloats) + kBlockFloats;
}

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
  shared->row_stride = RowStride(limits.model_dim);
  ISOTHERM_ASSIGN_OR_RETURN(shared->z, Floats(limits.max_rows, shared->row_stride));
  shared->threads.resize(limits.num_threads);
  for (SparseFfnThread& thread : shared->threads) {
    ISOTHERM_ASSIGN_OR_RETURN(thread.sums, Floats(limits.max_rows, shared->row_stride));
    ISOTHERM_ASSIGN_OR_RETURN(thread.own_z, Floats(1, shared->row_stride));
    ISOTHERM_ASSIGN_OR_RETURN(thread.pair_sums,
                              Floats(limits.max_rows, SparseFfnTuning::kMaxChunk * kMostLanes));
    thread.active.bits.resize(CeilDiv<int64_t>(limits.num_neurons, 64));
    thread.active.before.resize(thread.active.bits.size());
    thread.pair_rows.resize(limits.max_rows * SparseFfnTuning::kMaxChunk + 1);
    thread.row_first.resize(limits.max_rows + 2);
    thread.row_weights.resize(limits.max_rows * SparseFfnTuning::kMaxChunk);
    thread.row_scales.resize(limits.max_rows * SparseFfnTuning::kMaxChunk);
    thread.pair_first.resize(SparseFfnTuning::kMaxChunk + 1);
    thread.scales.resize(limits.max_rows * SparseFfnTuning::kMaxChunk);
    thread.ups.resize(limits.max_rows * SparseFfnTuning::kMaxChunk);
  }
  return std::unique_ptr<SparseFfnWorkspace>(new SparseFfnWorkspace(limits, std::move(shared)));
}

absl::Status SparseFfnWorkspace::SetTuning(const SparseFfnTuning& tuning) {
  const auto within = [](int value, int last) { return value >= 1 && value <= last; };
  constexpr int kMax = SparseFfnTuning::kMaxChunk;
  const bool pass_is_built = tuning.pass == 1 || tuning.pass == 2 || tuning.pass == 4;
  if (!pass_is_built || !within(tuning.phase, kMax) || !within(tuning.chunk, kMax) ||
      !within(tuning.tail, kMax) || tuning.fetch_lines < 0 || tuning.fetch_lines > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("tuning with pass ", tuning.pass, ", phase ", tuning.phase, ", chunk ",
                     tuning.chunk, ", tail ", tuning.tail, ", ", tuning.fetch_lines,
                     " lines a page; built for a pass of 1, 2 or 4, the others from 1 to ", kMax,
                     ", lines to 64"));
  }
  shared_->tuning = tuning;
  return absl::OkStatus();
}

ChunkPlan::ChunkPlan(int64_t num_ids, int num_threads, const SparseFfnTuning& tuning) {
  const int64_t sizes[3] = {tuning.chunk, std::max(tuning.tail, tuning.chunk / 2), tuning.tail};
  const int64_t small = std::min<int64_t>(num_ids, num_threads * sizes[2]);
  const int64_t middle = std::min<int64_t>(num_ids - small, num_threads * sizes[1]);
  const int64_t ids[3] = {num_ids - small - middle, middle, small};
  int64_t first = 0;
  for (int i = 0; i < 3; ++i) {
    tiers_[i] = {CeilDiv(ids[i], sizes[i]), sizes[i], first, first + ids[i]};
    first += ids[i];
  }
}

ChunkPlan::Range ChunkPlan::At(int64_t chunk) const {
  for (const Tier& tier : tiers_) {
    if (chunk < tier.chunks) {
      const int64_t first = tier.first + chunk * tier.size;
      return {first, static_cast<int>(std::min(tier.size, tier.last - first))};
    }
    chunk -= tier.chunks;
  }
  return {};
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
