#include "common/kernels/sparse_ffn.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/kernels/sparse_ffn_workspace.h"
#include "common/threading/spin_wait.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/sparse_ffn.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/active_bits-inl.h"
#include "common/kernels/block-inl.h"
#include "common/kernels/pair_stream-inl.h"
#include "common/kernels/stream-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {
namespace {

const uint8_t* Bundle(const BundleView& b, int32_t id) {
  const int64_t slot = b.slot_of == nullptr ? id : b.slot_of[id];
  return reinterpret_cast<const uint8_t*>(b.data) + slot * b.bundle_bytes;
}

// NaN goes through, so that a broken input shows.
float Activate(Activation activation, float value) {
  if (activation == Activation::kSilu) return value / (1.0f + std::exp(-value));
  if (activation == Activation::kGelu) {
    return 0.5f * value * std::erfc(value * -0.70710678f);  // 1 + erf(x) loses the left tail
  }
  return value <= 0.0f ? 0.0f : value;
}

// The neuron's word is this call's alone; whoever reads it meanwhile gets an old or new count.
void CountFirings(const SparseFfnParams& p, int32_t id, uint32_t rows) {
  if (p.fired == nullptr) return;
  std::atomic_ref<uint32_t> word(p.fired[id]);
  word.store(word.load(std::memory_order_relaxed) + rows, std::memory_order_relaxed);
}

// Between two steps of a large model the counts leave the cache: asked for at the start of a phase
// they are there when its gates are known.
void FetchCounts(const SparseFfnParams& p, const int32_t* ids, int count) {
  if (p.fired == nullptr) return;
  for (int i = 0; i < count; ++i) __builtin_prefetch(p.fired + ids[i], /*rw=*/1);
}

// Up to `width` bundles' rows at `offset`, from position `first` on.
Rows RowsOf(const uint8_t* const* bundles, int num_bundles, int first, int width, int64_t offset) {
  Rows rows;
  rows.count = std::min(width, num_bundles - first);
  for (int r = 0; r < rows.count; ++r) rows.at[r] = bundles[first + r] + offset;
  return rows;
}

// The rows with which the bundles of `ids` begin.
Rows FirstRows(const BundleView& b, const int32_t* ids, int num_ids, int width) {
  Rows rows;
  rows.count = std::min(width, num_ids);
  for (int r = 0; r < rows.count; ++r) rows.at[r] = Bundle(b, ids[r]);
  return rows;
}

// Bundles that go through gate, up and down together, for one row of z. Every pass fetches the rows
// of the one after it; the last one those of `following`, the next phase.
template <DType kType>
void PhaseOfOneRow(const SparseFfnParams& p, const SparseFfnTuning& tuning, const int32_t* ids,
                   int count, const Rows& following, SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const int width = tuning.pass;
  const uint8_t* bundles[SparseFfnTuning::kMaxChunk];
  for (int i = 0; i < count; ++i) bundles[i] = Bundle(b, ids[i]);
  FetchCounts(p, ids, count);
  const int64_t up_offset = b.row_bytes;  // with three rows
  const int64_t down_offset = (b.rows - 1) * b.row_bytes;
  const int64_t second_offset = b.rows == 3 ? up_offset : down_offset;
  const auto ahead = [&](const Rows& rows) {
    return Ahead{rows, tuning.fetch, tuning.fetch_lines};
  };

  float scale[SparseFfnTuning::kMaxChunk] = {};
  const uint8_t* open[SparseFfnTuning::kMaxChunk] = {};
  int num_open = 0;
  // What comes after the last gates: the further rows of those open by then, or, where none can be
  // known yet, of the very bundles at hand if gates tend to be open.
  const bool mostly_open = 2 * thread.counts.open_pairs >= thread.counts.pairs;
  const auto after_gates = [&](int at) {
    if (num_open > 0) return RowsOf(open, num_open, 0, width, second_offset);
    return mostly_open ? RowsOf(bundles, count, at, width, second_offset) : following;
  };
  for (int i = 0; i < count; i += width) {
    const Rows rows = RowsOf(bundles, count, i, width, 0);
    const Rows next =
        i + width < count ? RowsOf(bundles, count, i + width, width, 0) : after_gates(i);
    float dots[kPassRows] = {};
    StreamDotsOf<kType>(rows, ahead(next), thread.z, b.model_dim, dots);
    for (int r = 0; r < rows.count; ++r) {
      if (p.up_bias != nullptr) dots[r] += p.up_bias[ids[i + r]];
      if (p.activation == Activation::kRelu && dots[r] <= 0.0f) continue;
      CountFirings(p, ids[i + r], 1);
      scale[num_open] = Activate(p.activation, dots[r]);
      open[num_open++] = rows.at[r];
    }
  }
  thread.counts.pairs += count;
  thread.counts.open_pairs += num_open;
  thread.counts.bundles += count;
  thread.counts.open_bundles += num_open;
  if (p.hash != nullptr) {
    uint64_t sum = 0;
    for (int i = 0; i < count; ++i) {
      sum += NeuronMixFromSeed(p.hash->layer_seed, static_cast<uint64_t>(ids[i]));
    }
    thread.work_hash += p.hash->row_keys[0] * sum;
  }
  if (b.rows == 3) {
    for (int i = 0; i < num_open; i += width) {
      const Rows next = i + width < num_open ? RowsOf(open, num_open, i + width, width, up_offset)
                                             : RowsOf(open, num_open, 0, width, down_offset);
      const Rows rows = RowsOf(open, num_open, i, width, up_offset);
      float dots[kPassRows] = {};
      StreamDotsOf<kType>(rows, ahead(next), thread.z, b.model_dim, dots);
      for (int r = 0; r < rows.count; ++r) {
        scale[i + r] *= p.activate_up ? Activate(p.activation, dots[r]) : dots[r];
      }
    }
  }
  for (int i = 0; i < num_open; i += width) {
    const Rows next =
        i + width < num_open ? RowsOf(open, num_open, i + width, width, down_offset) : following;
    StreamScaledOf<kType>(RowsOf(open, num_open, i, width, down_offset), ahead(next), scale + i,
                          b.model_dim, thread.sums.get());
  }
}

// Of each bundle of the phase, the rows of z that ask for it; counts and hashes the pairs.
PairList ListPairs(const SparseFfnParams& p, const int32_t* ids, int count,
                   SparseFfnThread& thread) {
  const int64_t words = (p.bundles.num_neurons + 63) / 64;
  int32_t* const first = thread.pair_first.data();
  int32_t num_pairs = 0;
  for (int i = 0; i < count; ++i) {
    first[i] = num_pairs;
    const uint64_t* word = p.active + ids[i] / 64;
    const int bit = ids[i] % 64;
    for (int64_t row = 0; row < p.num_rows; ++row, word += words) {
      thread.pair_rows[num_pairs] = static_cast<int32_t>(row);
      num_pairs += static_cast<int32_t>(*word >> bit & 1);
    }
    if (p.hash == nullptr) continue;
    uint64_t keys = 0;
    for (int32_t pair = first[i]; pair < num_pairs; ++pair) {
      keys += p.hash->row_keys[thread.pair_rows[pair]];
    }
    thread.work_hash += keys * NeuronMixFromSeed(p.hash->layer_seed, static_cast<uint64_t>(ids[i]));
  }
  first[count] = num_pairs;
  thread.counts.pairs += num_pairs;
  return {thread.pair_rows.data(), first};
}

// Drops the pairs whose gate is shut: a weight never reaches a row that does not ask for it, not
// even times zero. thread.scales: gates of all pairs; becomes the activations of those that are
// left. Returns how many these are.
int32_t KeepOpenPairs(const SparseFfnParams& p, const int32_t* ids, int count,
                      SparseFfnThread& thread) {
  float* const gates = thread.scales.data();
  int32_t* const rows = thread.pair_rows.data();
  int32_t to = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t begin = thread.pair_first[i], end = thread.pair_first[i + 1];
    thread.pair_first[i] = to;
    const float bias = p.up_bias != nullptr ? p.up_bias[ids[i]] : 0.0f;
    for (int32_t pair = begin; pair < end; ++pair) {
      const float gate = gates[pair] + bias;
      rows[to] = rows[pair];
      gates[to] = p.activation == Activation::kRelu ? gate : Activate(p.activation, gate);
      // NaN stays.
      to += static_cast<int32_t>(p.activation != Activation::kRelu || !(gate <= 0.0f));
    }
    const int32_t open = to - thread.pair_first[i];
    if (open == 0) continue;
    ++thread.counts.open_bundles;
    CountFirings(p, ids[i], static_cast<uint32_t>(open));
  }
  thread.pair_first[count] = to;
  thread.counts.open_pairs += to;
  return to;
}

// The same pairs, row after row.
RowList ByRow(int64_t num_rows, int count, SparseFfnThread& thread) {
  int32_t* const first = thread.row_first.data();
  std::fill_n(first, num_rows + 2, 0);
  const int32_t num_pairs = thread.pair_first[count];
  for (int32_t pair = 0; pair < num_pairs; ++pair) ++first[thread.pair_rows[pair] + 2];
  for (int64_t row = 0; row < num_rows; ++row) first[row + 2] += first[row + 1];
  // first[row + 1] is where row's next pair goes, at last where the next row begins.
  for (int i = 0; i < count; ++i) {
    for (int32_t pair = thread.pair_first[i]; pair < thread.pair_first[i + 1]; ++pair) {
      const int32_t to = first[thread.pair_rows[pair] + 1]++;
      thread.row_weights[to] = i;
      thread.row_scales[to] = thread.scales[pair];
    }
  }
  return {num_rows, first, thread.row_weights.data(), thread.row_scales.data()};
}

// SparseFfnTuning::stream_pairs. Blocks decode a weight once for all its rows, which counts for
// quantised types; pairs keep to few rows of weights at a time, which counts where the L1 cache is
// small. Measured with sparse_ffn_benchmark on a Xeon of 2023 (AVX-512, L1 of 48 KiB) and an EPYC
// (AVX2, 32 KiB).
template <DType kType>
constexpr double kStreamPairs = kHasScales<kType>        ? 1.5
                                : HWY_TARGET == HWY_AVX3 ? 3
                                                         : 16;

// The same for a phase of which few rows ask, pair after pair.
template <DType kType, DType kX>
void PhaseOfPairs(const SparseFfnParams& p, const SparseFfnWorkspace::Shared& shared,
                  const int32_t* ids, int count, const uint8_t* const* bundles,
                  const PairList& pairs, const Rows& following, SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const XRows<kX> z{reinterpret_cast<const uint8_t*>(shared.z.get()), shared.row_stride};
  const auto rows_at = [&](int64_t offset) { return RowsOf(bundles, count, 0, count, offset); };
  // What comes after a part's last group: the first rows of the next part.
  const auto then = [&](Rows rows) {
    rows.count = std::min(rows.count, kPassRows);
    return Ahead{rows, shared.tuning.fetch, shared.tuning.fetch_lines};
  };
  const Rows gates = rows_at(0), up = rows_at(b.row_bytes);
  const Rows down = rows_at((b.rows - 1) * b.row_bytes);
  float* const scales = thread.scales.data();
  StreamPairDots<kType, kX>(gates, pairs, then(b.rows == 3 ? up : down), z, b.model_dim, scales);
  const int32_t num_open = KeepOpenPairs(p, ids, count, thread);
  if (num_open == 0) return;
  if (b.rows == 3) {
    float* const ups = thread.ups.data();
    StreamPairDots<kType, kX>(up, pairs, then(down), z, b.model_dim, ups);
    for (int32_t i = 0; i < num_open; ++i) {
      scales[i] *= p.activate_up ? Activate(p.activation, ups[i]) : ups[i];
    }
  }
  StreamPairScaled<kType>(down, pairs, scales, then(following), b.model_dim, thread.sums.get(),
                          shared.row_stride);
}

// Bundles that go through gate, up and down together, for many rows of z: each is loaded once and
// serves the rows whose bit is set.
template <DType kType, DType kX>
void PhaseOfManyRows(const SparseFfnParams& p, const SparseFfnWorkspace::Shared& shared,
                     const int32_t* ids, int count, const Rows& following,
                     SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const uint8_t* bundles[SparseFfnTuning::kMaxChunk];
  for (int i = 0; i < count; ++i) bundles[i] = Bundle(b, ids[i]);
  FetchCounts(p, ids, count);
  const auto rows_at = [&](int64_t offset) { return RowsOf(bundles, count, 0, count, offset); };
  const auto ahead = [&](const Rows& rows) {
    return Ahead{rows, shared.tuning.fetch, shared.tuning.fetch_lines};
  };
  const Rows up = rows_at(b.row_bytes);  // with three rows
  const Rows down = rows_at((b.rows - 1) * b.row_bytes);
  const XRows<kX> z{reinterpret_cast<const uint8_t*>(shared.z.get()), shared.row_stride};

  const PairList pairs = ListPairs(p, ids, count, thread);
  thread.counts.bundles += count;
  if constexpr (kType != DType::kF32) {  // no model's neurons are F32: repacked at load
    const double stream_pairs =
        shared.tuning.stream_pairs < 0 ? kStreamPairs<kType> : shared.tuning.stream_pairs;
    if (pairs.first[count] <= stream_pairs * count) {
      PhaseOfPairs<kType, kX>(p, shared, ids, count, bundles, pairs, following, thread);
      return;
    }
  }
  PairDots<kType, kX>(rows_at(0), pairs, ahead(b.rows == 3 ? up : down), z, b.model_dim,
                      thread.pair_sums.get(), thread.scales.data());
  const int32_t num_open = KeepOpenPairs(p, ids, count, thread);
  if (num_open == 0) return;
  if (b.rows == 3) {
    float* const ups = thread.ups.data();
    PairDots<kType, kX>(up, pairs, ahead(down), z, b.model_dim, thread.pair_sums.get(), ups);
    for (int32_t i = 0; i < num_open; ++i) {
      thread.scales[i] *= p.activate_up ? Activate(p.activation, ups[i]) : ups[i];
    }
  }
  bool used[SparseFfnTuning::kMaxChunk];
  for (int i = 0; i < count; ++i) used[i] = thread.pair_first[i] < thread.pair_first[i + 1];
  PairScaled<kType>(down, used, ByRow(p.num_rows, count, thread), ahead(following), b.model_dim,
                    thread.sums.get(), shared.row_stride);
}

// One row of z widened to `out`, zero up to whole vectors.
void WidenRowImpl(const SparseFfnParams& p, int64_t row, float* out) {
  const int64_t dim = p.bundles.model_dim;
  const auto bytes = [&](const auto* z) { return reinterpret_cast<const uint8_t*>(z + row * dim); };
  if (p.z_f16 != nullptr) DecodeSpan<DType::kF16>(bytes(p.z_f16), 0, dim, bytes(p.z_f16), out);
  if (p.z_bf16 != nullptr) DecodeSpan<DType::kBF16>(bytes(p.z_bf16), 0, dim, bytes(p.z_bf16), out);
  if (p.z != nullptr) DecodeSpan<DType::kF32>(bytes(p.z), 0, dim, bytes(p.z), out);
}

// What a thread does before its first chunk.
void StartThread(const SparseFfnParams& p, const SparseFfnWorkspace::Shared& shared,
                 SparseFfnThread& thread) {
  thread.call = shared.call;
  thread.work_hash = 0;
  thread.counts = {};
  std::fill_n(thread.sums.get(), p.num_rows * shared.row_stride, 0.0f);
  if (p.num_rows > 1) return;
  // Each thread widens a single row for itself: sooner than one could for all.
  if (p.z == nullptr) WidenRowImpl(p, 0, thread.own_z.get());
  thread.z = p.z != nullptr ? p.z : thread.own_z.get();
}

int64_t FindActiveImpl(const SparseFfnParams& p, ActiveBits& active) {
  return FindActive(p, active);
}

// Takes chunks until there are none. Returns how many ids were accumulated. thread.active is
// filled if found_active. kX: of the rows of z, where there are several.
template <DType kType, DType kX>
int64_t Work(const SparseFfnParams& p, SparseFfnWorkspace::Shared& shared, SparseFfnThread& thread,
             bool found_active) {
  const SparseFfnTuning& tuning = shared.tuning;
  const auto claim = [&] {
    return shared.chunks.At(shared.next_chunk.fetch_add(1, std::memory_order_relaxed));
  };
  ChunkPlan::Range next = claim();
  if (next.count == 0) return 0;
  if (!found_active) FindActive(p, thread.active);
  StartThread(p, shared, thread);
  const int width = p.num_rows == 1 ? tuning.pass : tuning.phase;
  int32_t ids[2][SparseFfnTuning::kMaxChunk];
  IdsAt(thread.active, next.first, next.count, ids[0]);
  int64_t done = 0;
  for (int now = 0; next.count > 0; now = 1 - now) {
    const int count = next.count;
    // The next chunk is claimed now, so that its first rows are fetched under the end of this one.
    next = claim();
    IdsAt(thread.active, next.first, next.count, ids[1 - now]);
    for (int i = 0; i < count; i += tuning.phase) {
      const int phase = std::min(tuning.phase, count - i);
      const int32_t* const phase_ids = ids[now] + i;
      const Rows following = i + phase < count
                                 ? FirstRows(p.bundles, phase_ids + phase, count - i - phase, width)
                                 : FirstRows(p.bundles, ids[1 - now], next.count, width);
      if (p.num_rows == 1) {
        PhaseOfOneRow<kType>(p, tuning, phase_ids, phase, following, thread);
      } else {
        PhaseOfManyRows<kType, kX>(p, shared, phase_ids, phase, following, thread);
      }
    }
    done += count;
  }
  return done;
}

int64_t SparseFfnWorkImpl(const SparseFfnParams& p, SparseFfnWorkspace::Shared& shared,
                          SparseFfnThread& thread, bool found_active) {
  int64_t done = 0;
  WithType(p.bundles.dtype, [&](auto type) {
    constexpr DType kType = type();
    done = p.num_rows > 1 && StaysNarrow(p)
               ? Work<kType, NarrowInput(kType)>(p, shared, thread, found_active)
               : Work<kType, DType::kF32>(p, shared, thread, found_active);
  });
  return done;
}

// out[c] = sum over num_sources of source[i][c], in order, for c in [first, last).
void SumSourcesImpl(const float* const* sources, int num_sources, int64_t first, int64_t last,
                    float* out) {
  const DF d;
  int64_t c = first;
  for (; c + kLanes <= last; c += kLanes) {
    VF sum = num_sources > 0 ? hn::LoadU(d, sources[0] + c) : hn::Zero(d);
    for (int i = 1; i < num_sources; ++i) sum = hn::Add(sum, hn::LoadU(d, sources[i] + c));
    hn::StoreU(sum, d, out + c);
  }
  for (; c < last; ++c) {
    float sum = num_sources > 0 ? sources[0][c] : 0.0f;
    for (int i = 1; i < num_sources; ++i) sum += sources[i][c];
    out[c] = sum;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace kernels_internal {
HWY_EXPORT(SparseFfnWorkImpl);
HWY_EXPORT(WidenRowImpl);
HWY_EXPORT(FindActiveImpl);
HWY_EXPORT(SumSourcesImpl);
}  // namespace kernels_internal

using namespace kernels_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

namespace {

using Shared = SparseFfnWorkspace::Shared;

// partial's columns of slice `slice` of num_slices, of all rows.
void SumSlice(const SparseFfnParams& p, const Shared& shared, int64_t slice, int64_t num_slices) {
  const int64_t dim = p.bundles.model_dim;
  // Slices end on cache lines of the accumulators.
  const int64_t slice_dim = RoundUp<int64_t>(CeilDiv<int64_t>(dim, num_slices), 16);
  const int64_t first = std::min(dim, slice * slice_dim);
  const int64_t last = std::min(dim, first + slice_dim);
  const float* sources[kMaxSparseFfnThreads];
  for (int64_t row = 0; row < p.num_rows; ++row) {
    int num_sources = 0;
    for (const SparseFfnThread& thread : shared.threads) {
      if (thread.call == shared.call) {
        sources[num_sources++] = thread.sums.get() + row * shared.row_stride;
      }
    }
    HWY_DYNAMIC_DISPATCH(SumSourcesImpl)(sources, num_sources, first, last, p.partial + row * dim);
  }
}

// Many rows are laid out once for all threads, up to whole vectors with zeros behind.
void LayOutRows(const SparseFfnParams& p, Shared& shared, ThreadPool& pool) {
  const int64_t dim = p.bundles.model_dim;
  const bool narrow = StaysNarrow(p);
  const uint16_t* const z16 = p.z_f16 != nullptr ? p.z_f16 : p.z_bf16;
  std::atomic<int64_t> next_row{0};
  pool.RunElastic([&](int) {
    for (int64_t row; (row = next_row.fetch_add(1, std::memory_order_relaxed)) < p.num_rows;) {
      if (narrow) {
        auto* const to = reinterpret_cast<uint16_t*>(shared.z.get()) + row * shared.row_stride;
        std::copy_n(z16 + row * dim, dim, to);
        std::fill(to + dim, to + RoundUp<int64_t>(dim, 16), uint16_t{0});
        continue;
      }
      HWY_DYNAMIC_DISPATCH(WidenRowImpl)(p, row, shared.z.get() + row * shared.row_stride);
    }
  });
}

void Finish(const SparseFfnParams& p, absl::FunctionRef<void()> complete) {
  if (p.hash != nullptr) {
    const Shared& shared = p.workspace->shared();
    *p.work_hash = 0;
    for (const SparseFfnThread& thread : shared.threads) {
      if (thread.call == shared.call) *p.work_hash += thread.work_hash;
    }
  }
  complete();
}

}  // namespace

SparseFfnCounts CountsOf(const SparseFfnWorkspace& workspace) {
  SparseFfnCounts sum;
  for (const SparseFfnThread& thread : workspace.shared().threads) {
    if (thread.call != workspace.shared().call) continue;
    sum.pairs += thread.counts.pairs;
    sum.open_pairs += thread.counts.open_pairs;
    sum.bundles += thread.counts.bundles;
    sum.open_bundles += thread.counts.open_bundles;
  }
  return sum;
}

absl::Status SparseFfn(const SparseFfnParams& params, ThreadPool& pool,
                       absl::FunctionRef<void()> complete) {
  ISOTHERM_RETURN_IF_ERROR(ValidateSparseFfn(params));
  if (pool.num_threads() > params.workspace->limits().num_threads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pool of ", pool.num_threads(), " threads, workspace for ",
        params.workspace->limits().num_threads, "; create the workspace for the pool"));
  }
  Shared& shared = params.workspace->shared();
  ++shared.call;
  const int64_t count = HWY_DYNAMIC_DISPATCH(FindActiveImpl)(params, shared.threads[0].active);
  if (count == 0) {
    std::fill_n(params.partial, params.num_rows * params.bundles.model_dim, 0.0f);
    Finish(params, complete);
    return absl::OkStatus();
  }
  if (params.num_rows > 1) LayOutRows(params, shared, pool);
  const int threads = params.max_threads > 0 ? std::min(params.max_threads, pool.num_threads())
                                             : pool.num_threads();
  shared.chunks = ChunkPlan(count, threads, shared.tuning);
  shared.next_chunk.store(0, std::memory_order_relaxed);
  shared.ids_left.Reset(count);
  const int64_t floats = params.num_rows * params.bundles.model_dim * threads;
  // Up to here one thread adds the sums (64 KB, some 2 us) sooner than the others are called.
  constexpr int64_t kReduceAloneFloats = 16 * 1024;
  const int64_t num_slices = floats <= kReduceAloneFloats ? 1 : threads;
  shared.next_slice.store(0, std::memory_order_relaxed);
  shared.slices_left.Reset(num_slices);
  // One section for both halves. A thread that comes late finds no chunk left and owes no sum; one
  // that has waited for others' chunks in vain leaves the slices to those that have not.
  pool.RunElastic(
      [&](int thread_idx) {
        const int64_t done = HWY_DYNAMIC_DISPATCH(SparseFfnWorkImpl)(
            params, shared, shared.threads[static_cast<size_t>(thread_idx)], thread_idx == 0);
        if (done > 0) shared.ids_left.Take(done);
        if (thread_idx == 0) {
          shared.ids_left.Wait(pool.spin());
        } else if (num_slices == 1 || !threading_internal::SpinUntil(
                                          pool.spin(), [&] { return shared.ids_left.Done(); })) {
          return;
        }
        for (int64_t s;
             (s = shared.next_slice.fetch_add(1, std::memory_order_relaxed)) < num_slices;) {
          SumSlice(params, shared, s, num_slices);
          shared.slices_left.Take(1);
        }
        if (thread_idx != 0) return;
        shared.slices_left.Wait(pool.spin());
        Finish(params, complete);
      },
      threads);
  return absl::OkStatus();
}

}  // namespace isotherm
#endif  // HWY_ONCE
