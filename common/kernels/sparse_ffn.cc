#include "common/kernels/sparse_ffn.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/kernels/sparse_ffn_workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/sparse_ffn.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/dot-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {
namespace {

// Bundles of one piece of work: large against the cursor's cost (some 50 ns), small enough that the
// last piece of a layer of a hundred active neurons does not leave other threads idle.
constexpr int64_t kPiece = 8;

// The ids that this call computes, ascending, from the OR of the rows' bitmaps.
int64_t ExpandActive(const SparseFfnParams& p, int32_t* ids) {
  const int64_t words = (p.bundles.num_neurons + 63) / 64;
  int64_t count = 0;
  for (int64_t word = p.first_neuron / 64; word * 64 < p.last_neuron; ++word) {
    uint64_t bits = 0;
    for (int64_t row = 0; row < p.num_rows; ++row) bits |= p.active[row * words + word];
    if (p.owned != nullptr) bits &= p.owned[word];
    const int64_t base = word * 64;
    if (base < p.first_neuron) bits &= ~uint64_t{0} << (p.first_neuron - base);
    if (base + 64 > p.last_neuron) bits &= ~uint64_t{0} >> (base + 64 - p.last_neuron);
    for (; bits != 0; bits &= bits - 1) {
      const int32_t id = static_cast<int32_t>(base + std::countr_zero(bits));
      if (p.bundles.slot_of == nullptr || p.bundles.slot_of[id] >= 0) ids[count++] = id;
    }
  }
  return count;
}

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

// dots[r] = w[r] . z for count rows.
template <DType kType>
void DotsOfOneRow(const uint8_t* const* w, const uint8_t* const* ahead, int count, const float* z,
                  int64_t columns, float* dots) {
  switch (count) {
    case 1:
      return DotTile<kType, 1, 1>(w, ahead, &z, columns, dots);
    case 2:
      return DotTile<kType, 2, 1>(w, ahead, &z, columns, dots);
    case 3:
      return DotTile<kType, 3, 1>(w, ahead, &z, columns, dots);
    case 4:
      return DotTile<kType, 4, 1>(w, ahead, &z, columns, dots);
  }
}

template <DType kType, bool kFetch>
void AddScaled(const uint8_t* const* w, const uint8_t* const* ahead, const float* a, int count,
               int64_t columns, float* y) {
  switch (count) {
    case 1:
      return ScaledSum<kType, 1, kFetch>(w, ahead, a, columns, y);
    case 2:
      return ScaledSum<kType, 2, kFetch>(w, ahead, a, columns, y);
    case 3:
      return ScaledSum<kType, 3, kFetch>(w, ahead, a, columns, y);
    case 4:
      return ScaledSum<kType, 4, kFetch>(w, ahead, a, columns, y);
  }
}

// `count` weight rows of one pass; past them the last one again, so that there always are
// kPassRows to name.
struct Pass {
  const uint8_t* rows[kPassRows];
  int count = 0;
};

// Rows at `offset` of bundles [first, first + kPassRows) of `num_bundles`.
Pass MakePass(const uint8_t* const* bundles, int num_bundles, int first, int64_t offset) {
  Pass pass;
  pass.count = std::min(kPassRows, num_bundles - first);
  for (int r = 0; r < kPassRows; ++r) {
    pass.rows[r] = bundles[first + std::min(r, pass.count - 1)] + offset;
  }
  return pass;
}

// The pass that starts the piece at ids: its first gates.
Pass FirstPass(const BundleView& b, const int32_t* ids, int64_t count) {
  const uint8_t* bundles[kPassRows];
  const int num = static_cast<int>(std::min<int64_t>(kPassRows, count));
  for (int r = 0; r < num; ++r) bundles[r] = Bundle(b, ids[r]);
  return MakePass(bundles, num, 0, 0);
}

// A piece for one row: all gates, then for those that are open all ups, then the downs. Each pass
// fetches the rows of the one after it; the last fetches those of `following`, the next piece's
// first (count 0: none).
template <DType kType>
void PieceOfOneRow(const SparseFfnParams& p, const float* z, const int32_t* ids, int count,
                   const Pass& following, SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const uint8_t* bundles[kPiece];
  for (int i = 0; i < count; ++i) bundles[i] = Bundle(b, ids[i]);
  const int64_t up_offset = b.row_bytes;  // with three rows
  const int64_t down_offset = (b.rows - 1) * b.row_bytes;
  const int64_t second_offset = b.rows == 3 ? up_offset : down_offset;

  float scale[kPiece];
  const uint8_t* open[kPiece];
  int num_open = 0;
  for (int i = 0; i < count; i += kPassRows) {
    const Pass pass = MakePass(bundles, count, i, 0);
    // While the last gates are computed the neurons open so far are all that is known.
    const Pass ahead = i + kPassRows < count ? MakePass(bundles, count, i + kPassRows, 0)
                       : num_open > 0        ? MakePass(open, num_open, 0, second_offset)
                                             : following;
    float dots[kPassRows];
    DotsOfOneRow<kType>(pass.rows, ahead.rows, pass.count, z, b.model_dim, dots);
    for (int r = 0; r < pass.count; ++r) {
      if (p.up_bias != nullptr) dots[r] += p.up_bias[ids[i + r]];
      if (p.activation == Activation::kRelu && dots[r] <= 0.0f) continue;
      CountFirings(p, ids[i + r], 1);
      scale[num_open] = Activate(p.activation, dots[r]);
      open[num_open++] = pass.rows[r];
    }
  }
  thread.num_open += num_open;
  thread.num_bundles += count;
  thread.num_open_bundles += num_open;
  if (p.hash != nullptr) {
    uint64_t sum = 0;
    for (int i = 0; i < count; ++i) {
      sum += NeuronMixFromSeed(p.hash->layer_seed, static_cast<uint64_t>(ids[i]));
    }
    thread.work_hash += p.hash->row_keys[0] * sum;
  }
  if (b.rows == 3) {
    for (int i = 0; i < num_open; i += kPassRows) {
      const Pass pass = MakePass(open, num_open, i, up_offset);
      const Pass ahead = i + kPassRows < num_open
                             ? MakePass(open, num_open, i + kPassRows, up_offset)
                             : MakePass(open, num_open, 0, down_offset);
      float dots[kPassRows];
      DotsOfOneRow<kType>(pass.rows, ahead.rows, pass.count, z, b.model_dim, dots);
      for (int r = 0; r < pass.count; ++r) {
        scale[i + r] *= p.activate_up ? Activate(p.activation, dots[r]) : dots[r];
      }
    }
  }
  for (int i = 0; i < num_open; i += kPassRows) {
    const Pass pass = MakePass(open, num_open, i, down_offset);
    const Pass ahead =
        i + kPassRows < num_open ? MakePass(open, num_open, i + kPassRows, down_offset) : following;
    AddScaled<kType, true>(pass.rows, ahead.rows, scale + i, pass.count, b.model_dim,
                           thread.sums.get());
  }
}

// out[i * kPassRows + r] = w[r] . z[rows[i]] for the listed rows; the kPassRows weight rows are
// decoded once.
template <DType kType>
void DotsOfRows(const uint8_t* const* w, const uint8_t* const* ahead,
                const SparseFfnWorkspace::Shared& shared, const int32_t* rows, int64_t num_rows,
                int64_t columns, float* decoded, float* out) {
  const int64_t stride = shared.padded_dim;
  const float* const z = shared.z.get();
  if (num_rows <= 2) {
    const float* x[2];
    for (int64_t i = 0; i < num_rows; ++i) x[i] = z + rows[i] * stride;
    if (num_rows == 1) return DotTile<kType, kPassRows, 1>(w, ahead, x, columns, out);
    return DotTile<kType, kPassRows, 2>(w, ahead, x, columns, out);
  }
  for (int r = 0; r < kPassRows; ++r) {
    DecodeSpan<kType>(w[r], 0, columns, ahead[r], decoded + r * stride);
  }
  const int64_t vecs = (columns + kLanes - 1) / kLanes;
  int tile;
  for (int64_t i = 0; i < num_rows; i += tile) {
    tile = TileSize(num_rows - i);
    const float* x[kTileX];
    for (int j = 0; j < tile; ++j) x[j] = z + rows[i + j] * stride;
    DecodedProduct(tile, decoded, stride, x, vecs, out + i * kPassRows, kPassRows);
  }
}

// Keeps the rows for which `keep(list position)` leaves a neuron bit; returns how many.
template <typename Keep>
int64_t Compact(int64_t count, SparseFfnThread& thread, const Keep& keep) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t neurons = keep(i);
    if (neurons == 0) continue;
    thread.rows[kept] = thread.rows[i];
    thread.row_neurons[kept] = neurons;
    if (kept != i) {
      std::copy_n(&thread.gates[i * kPassRows], kPassRows, &thread.gates[kept * kPassRows]);
    }
    ++kept;
  }
  return kept;
}

// Up to kPassRows bundles for many rows: each is loaded once and serves the rows whose bit is set.
template <DType kType>
void PassOfManyRows(const SparseFfnParams& p, const SparseFfnWorkspace::Shared& shared,
                    const int32_t* ids, int pass, const Pass& following, SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const int64_t words = (b.num_neurons + 63) / 64;
  const uint8_t* bundle[kPassRows];
  uint64_t mix[kPassRows] = {};
  for (int r = 0; r < kPassRows; ++r) bundle[r] = Bundle(b, ids[std::min(r, pass - 1)]);
  if (p.hash != nullptr) {
    for (int r = 0; r < pass; ++r) {
      mix[r] = NeuronMixFromSeed(p.hash->layer_seed, static_cast<uint64_t>(ids[r]));
    }
  }
  int64_t count = 0;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const uint64_t* const active = p.active + row * words;
    uint8_t neurons = 0;
    uint64_t sum = 0;
    for (int r = 0; r < pass; ++r) {
      const uint64_t bit = active[ids[r] / 64] >> (ids[r] % 64) & 1;
      neurons |= static_cast<uint8_t>(bit << r);
      sum += mix[r] & (uint64_t{0} - bit);
    }
    if (neurons == 0) continue;
    if (p.hash != nullptr) thread.work_hash += p.hash->row_keys[row] * sum;
    thread.rows[count] = static_cast<int32_t>(row);
    thread.row_neurons[count++] = neurons;
  }

  float* const gates = thread.gates.data();
  const uint8_t* second[kPassRows];  // up with three rows, else down
  const uint8_t* down[kPassRows];
  for (int r = 0; r < kPassRows; ++r) {
    second[r] = bundle[r] + b.row_bytes;
    down[r] = bundle[r] + (b.rows - 1) * b.row_bytes;
  }
  DotsOfRows<kType>(bundle, second, shared, thread.rows.data(), count, b.model_dim,
                    thread.decoded.get(), gates);
  count = Compact(count, thread, [&](int64_t i) {
    uint8_t neurons = thread.row_neurons[i];
    for (int r = 0; r < kPassRows; ++r) {
      float& gate = gates[i * kPassRows + r];
      if (p.up_bias != nullptr) gate += p.up_bias[ids[std::min(r, pass - 1)]];
      const bool shut = p.activation == Activation::kRelu && gate <= 0.0f;
      if (shut) neurons &= static_cast<uint8_t>(~(1u << r));
      gate = (neurons >> r & 1) != 0 ? Activate(p.activation, gate) : 0.0f;
    }
    return neurons;
  });
  thread.num_bundles += pass;
  if (count == 0) return;
  uint32_t open_rows[kPassRows] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int r = 0; r < pass; ++r) open_rows[r] += thread.row_neurons[i] >> r & 1;
  }
  for (int r = 0; r < pass; ++r) {
    if (open_rows[r] == 0) continue;
    thread.num_open += open_rows[r];
    ++thread.num_open_bundles;
    CountFirings(p, ids[r], open_rows[r]);
  }
  if (b.rows == 3) {
    DotsOfRows<kType>(second, down, shared, thread.rows.data(), count, b.model_dim,
                      thread.decoded.get(), thread.ups.data());
    for (int64_t i = 0; i < count * kPassRows; ++i) {
      const bool on = (thread.row_neurons[i / kPassRows] >> (i % kPassRows) & 1) != 0;
      const float up = p.activate_up ? Activate(p.activation, thread.ups[i]) : thread.ups[i];
      gates[i] = on ? gates[i] * up : 0.0f;
    }
  }
  const int64_t stride = shared.padded_dim;
  const uint8_t* w[kPassRows];
  for (int r = 0; r < kPassRows; ++r) w[r] = down[r];
  const bool decode = count > 2;
  if (decode) {
    for (int r = 0; r < pass; ++r) {
      float* const decoded = thread.decoded.get() + r * stride;
      DecodeSpan<kType>(w[r], 0, b.model_dim, following.rows[r], decoded);
      w[r] = reinterpret_cast<const uint8_t*>(decoded);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    // Only the row's own neurons: others' weights never reach it, not even times zero.
    const uint8_t* own[kPassRows];
    float scale[kPassRows];
    int num_own = 0;
    for (int r = 0; r < pass; ++r) {
      if ((thread.row_neurons[i] >> r & 1) == 0) continue;
      own[num_own] = w[r];
      scale[num_own++] = gates[i * kPassRows + r];
    }
    float* const sums = thread.sums.get() + thread.rows[i] * stride;
    if (decode) {
      AddScaled<DType::kF32, false>(own, nullptr, scale, num_own, b.model_dim, sums);
    } else {
      AddScaled<kType, true>(own, following.rows, scale, num_own, b.model_dim, sums);
    }
  }
}

template <DType kType>
void Work(const SparseFfnParams& p, SparseFfnWorkspace::Shared& shared, SparseFfnThread& thread) {
  const BundleView& b = p.bundles;
  const int64_t count = ExpandActive(p, thread.ids.data());
  const int32_t* const ids = thread.ids.data();
  const auto claim = [&] { return shared.cursor.fetch_add(kPiece, std::memory_order_relaxed); };
  // One piece is claimed ahead, so that its first rows can be fetched under the end of this one.
  int64_t next = claim();
  while (next < count) {
    const int64_t first = next;
    next = claim();
    if (!thread.used) {
      thread.used = true;
      std::fill_n(thread.sums.get(), p.num_rows * shared.padded_dim, 0.0f);
    }
    const int piece = static_cast<int>(std::min(kPiece, count - first));
    // Without a following piece the one at hand is named again: its lines are near already.
    const int64_t following = next < count ? next : first;
    const Pass following_pass = FirstPass(b, ids + following, count - following);
    if (p.num_rows == 1) {
      PieceOfOneRow<kType>(p, shared.z.get(), ids + first, piece, following_pass, thread);
      continue;
    }
    for (int i = 0; i < piece; i += kPassRows) {
      const int pass = std::min(kPassRows, piece - i);
      const Pass ahead = i + kPassRows < piece
                             ? FirstPass(b, ids + first + i + kPassRows, piece - i - kPassRows)
                             : following_pass;
      PassOfManyRows<kType>(p, shared, ids + first + i, pass, ahead, thread);
    }
  }
}

void SparseFfnWorkImpl(const SparseFfnParams& p, SparseFfnWorkspace::Shared& shared,
                       SparseFfnThread& thread) {
  WithType(p.bundles.dtype, [&](auto type) { Work<type()>(p, shared, thread); });
}

// z, widened to F32, into rows of padded_dim floats.
void WidenInputImpl(const SparseFfnParams& p, SparseFfnWorkspace::Shared& shared) {
  const int64_t dim = p.bundles.model_dim;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    float* const out = shared.z.get() + row * shared.padded_dim;
    const auto bytes = [&](const auto* z) {
      return reinterpret_cast<const uint8_t*>(z + row * dim);
    };
    if (p.z_f16 != nullptr) DecodeSpan<DType::kF16>(bytes(p.z_f16), 0, dim, bytes(p.z_f16), out);
    if (p.z_bf16 != nullptr)
      DecodeSpan<DType::kBF16>(bytes(p.z_bf16), 0, dim, bytes(p.z_bf16), out);
    if (p.z != nullptr) DecodeSpan<DType::kF32>(bytes(p.z), 0, dim, bytes(p.z), out);
  }
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
HWY_EXPORT(WidenInputImpl);
HWY_EXPORT(SumSourcesImpl);
}  // namespace kernels_internal

using namespace kernels_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

absl::Status SparseFfnBegin(const SparseFfnParams& params) {
  ISOTHERM_RETURN_IF_ERROR(ValidateSparseFfn(params));
  SparseFfnWorkspace::Shared& shared = params.workspace->shared();
  for (SparseFfnThread& thread : shared.threads) {
    thread.used = false;
    thread.work_hash = 0;
    thread.num_open = 0;
    thread.num_bundles = 0;
    thread.num_open_bundles = 0;
  }
  shared.cursor.store(0, std::memory_order_relaxed);
  HWY_DYNAMIC_DISPATCH(WidenInputImpl)(params, shared);
  return absl::OkStatus();
}

void SparseFfnWork(const SparseFfnParams& params, int thread_idx) {
  SparseFfnWorkspace::Shared& shared = params.workspace->shared();
  HWY_DYNAMIC_DISPATCH(SparseFfnWorkImpl)(params, shared, shared.threads[thread_idx]);
}

void SparseFfnReduce(const SparseFfnParams& params, int64_t slice, int64_t num_slices) {
  const SparseFfnWorkspace::Shared& shared = params.workspace->shared();
  const int64_t dim = params.bundles.model_dim;
  // Slices end on cache lines of the accumulators.
  const int64_t slice_dim = RoundUp<int64_t>(CeilDiv<int64_t>(dim, num_slices), 16);
  const int64_t first = std::min(dim, slice * slice_dim);
  const int64_t last = std::min(dim, first + slice_dim);
  const float* sources[kMaxSparseFfnThreads];
  for (int64_t row = 0; row < params.num_rows; ++row) {
    int num_sources = 0;
    for (const SparseFfnThread& thread : shared.threads) {
      if (thread.used) sources[num_sources++] = thread.sums.get() + row * shared.padded_dim;
    }
    HWY_DYNAMIC_DISPATCH(SumSourcesImpl)
    (sources, num_sources, first, last, params.partial + row * dim);
  }
}

uint64_t SparseFfnWorkHash(const SparseFfnParams& params) {
  uint64_t sum = 0;
  for (const SparseFfnThread& thread : params.workspace->shared().threads) sum += thread.work_hash;
  return sum;
}

int64_t SparseFfnOpenPairs(const SparseFfnWorkspace& workspace) {
  int64_t sum = 0;
  for (const SparseFfnThread& thread : workspace.shared().threads) sum += thread.num_open;
  return sum;
}

int64_t SparseFfnBytesRead(const SparseFfnWorkspace& workspace, const BundleView& bundles) {
  int64_t sum = 0;
  for (const SparseFfnThread& thread : workspace.shared().threads) {
    sum += bundles.row_bytes * (thread.num_bundles + (bundles.rows - 1) * thread.num_open_bundles);
  }
  return sum;
}

absl::Status SparseFfn(const SparseFfnParams& params, ThreadPool& pool) {
  ISOTHERM_RETURN_IF_ERROR(SparseFfnBegin(params));
  if (pool.num_threads() > params.workspace->limits().num_threads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pool of ", pool.num_threads(), " threads, workspace for ",
        params.workspace->limits().num_threads, "; create the workspace for the pool"));
  }
  // Up to here one thread adds the sums (64 KB, some 2 us) sooner than the others are called.
  constexpr int64_t kReduceAloneFloats = 16 * 1024;
  pool.RunElastic([&](int thread_idx) { SparseFfnWork(params, thread_idx); });
  const int64_t floats = params.num_rows * params.bundles.model_dim * pool.num_threads();
  if (floats <= kReduceAloneFloats) {
    SparseFfnReduce(params, 0, 1);
  } else {
    const int64_t slices = pool.num_threads();
    std::atomic<int64_t> cursor{0};
    pool.RunElastic([&](int) {
      for (int64_t s; (s = cursor.fetch_add(1, std::memory_order_relaxed)) < slices;) {
        SparseFfnReduce(params, s, slices);
      }
    });
  }
  if (params.hash != nullptr) *params.work_hash = SparseFfnWorkHash(params);
  return absl::OkStatus();
}

}  // namespace isotherm
#endif  // HWY_ONCE
