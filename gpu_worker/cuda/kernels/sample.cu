#include <cfloat>

#include "gpu_worker/cuda/kernels/product.cuh"
#include "gpu_worker/engine/plain_draw.h"

// One block samples one row, as PlainDraw says. Sums are of integers, so that neither the order of
// threads nor that of passes shows in a token. What top_k and top_p keep is found without sorting:
// the smallest logit that stays by bisection, each pass of which measures three candidates at once.
namespace isotherm::gpu {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMostListed = 8192;  // logits that are kept in shared memory for the bisection

using Sum = unsigned long long;

// Larger logits have larger keys; -0 and 0 the same. No logit has key 0.
__device__ inline uint32_t KeyOf(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float LogitOf(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

__device__ inline Sum WarpMax(Sum value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// Sums of the threads before this one; *total of all. scratch: 32 elements.
__device__ inline Sum BlockScan(Sum value, Sum* scratch, Sum* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Sum sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Sum before = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  Sum before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? scratch[w] : 0;
    all += scratch[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - value;
}

struct Row {
  const float* logits;
  int size;
  float top, floor, inverse_temperature;  // floor: of logits

  __device__ bool Candidate(float logit) const { return logit >= floor; }  // no NaN
  __device__ Sum Weight(float logit) const {
    return static_cast<Sum>(expf((logit - top) * inverse_temperature) * kDrawUnit);
  }
};

// What a bisection measures: logits by number or by weight, those in `list` or the candidates of
// the row.
struct Measured {
  const Row& row;
  const float* list;  // null: of the row
  int listed;
  bool by_weight;

  template <class Each>
  __device__ void ForEach(const Each& each) const {
    const float* const from = list != nullptr ? list : row.logits;
    const int size = list != nullptr ? listed : row.size;
    for (int i = threadIdx.x; i < size; i += kThreads) {
      const float logit = from[i];
      if (row.Candidate(logit)) each(KeyOf(logit), by_weight ? row.Weight(logit) : Sum{1});
    }
  }
};

// The largest key from `low` on for which those at or above it measure at least `wanted`, which
// those from `low` on do; *above: what those above it measure. `high`: above all.
__device__ uint32_t Bisect(const Measured& measured, uint32_t low, uint32_t high, Sum wanted,
                           Sum* above, Sum* scratch) {
  Sum at_high = 0;
  while (high - low > 1) {
    uint32_t pivots[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      pivots[i] = low + static_cast<uint32_t>((uint64_t{high - low} * (i + 1)) / 4);
      pivots[i] = max(pivots[i], low + 1);
    }
    Sum sums[3] = {};
    measured.ForEach([&](uint32_t key, Sum size) {
#pragma unroll
      for (int i = 0; i < 3; ++i) sums[i] += key >= pivots[i] ? size : 0;
    });
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i] = BlockSum(sums[i], scratch);
#pragma unroll
    for (int i = 2; i >= 0; --i) {  // the sums fall as pivots rise
      if (sums[i] >= wanted) {
        low = max(low, pivots[i]);
      } else {
        high = pivots[i];
        at_high = sums[i];
      }
    }
  }
  *above = at_high;
  return low;
}

// By the thread that knows the token.
__device__ inline void Store(const SampleArgs& args, const SampleRow& how, int which, int token) {
  args.step.tokens[which] = token;
  for (int i = 0; i < how.num_stops; ++i) {
    if (how.stops[i] == token) args.step.state->stopped = 1;
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleArgs args) {
  AwaitPrevious();
  const int which = blockIdx.x;
  if (which >= args.step.header->num_logits) return;
  const SampleRow how = args.step.samples[which];
  if (how.on_device == 0) return;
  __shared__ Sum scratch[32];
  __shared__ float list[kMostListed];
  __shared__ int listed;
  Row row{.logits = args.logits + int64_t{which} * args.vocabulary,
          .size = args.vocabulary,
          .inverse_temperature = how.inverse_temperature};
  // The largest, of equals the first.
  Sum best = 0;
  for (int i = threadIdx.x; i < row.size; i += kThreads) {
    const float logit = row.logits[i];
    if (logit == logit) best = max(best, Sum{KeyOf(logit)} << 32 | (0xffffffffu - i));
  }
  best = WarpMax(best);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) best = max(best, scratch[w]);
  __syncthreads();
  const auto top_key = static_cast<uint32_t>(best >> 32);
  row.top = LogitOf(top_key);
  if (best == 0 || !isfinite(row.top)) {
    if (threadIdx.x == 0) {
      args.step.tokens[which] = -1;
      args.step.state->failure = kStepNoNumbers;
      args.step.state->failed_layer = args.step.logit_rows[which];
    }
    return;
  }
  if (how.greedy != 0) {
    if (threadIdx.x == 0)
      Store(args, how, which, static_cast<int>(0xffffffffu - static_cast<uint32_t>(best)));
    return;
  }
  row.floor = fmaxf(-FLT_MAX, row.top + how.floor);
  // Of those at or above `least` all above it stay, and the first `equals` at it.
  uint32_t least = 0;
  Sum equals = ~Sum{0};
  if (how.top_k > 0 || how.top_p < 1.0f) {
    Sum count = 0, total = 0;
    const Measured all{row, nullptr, 0, true};
    all.ForEach([&](uint32_t, Sum weight) {
      ++count;
      total += weight;
    });
    count = BlockSum(count, scratch);
    total = BlockSum(total, scratch);
    // What lies below cannot stay: all of it together has less than the share that is cut off, or,
    // for top_k, no weight.
    const double cut = how.top_k > 0 ? 0.0
                                     : (1.0 - static_cast<double>(how.top_p)) *
                                           static_cast<double>(total) / row.size;
    const Sum light = max(Sum{1}, static_cast<Sum>(cut));
    if (threadIdx.x == 0) listed = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.size; i += kThreads) {
      const float logit = row.logits[i];
      if (!row.Candidate(logit) || row.Weight(logit) < light) continue;
      const int at = atomicAdd(&listed, 1);
      if (at < kMostListed) list[at] = logit;
    }
    __syncthreads();
    const bool fits = listed <= kMostListed;
    const float* const from = fits ? list : nullptr;
    const Sum in_list = listed;
    __syncthreads();
    if (how.top_k > 0 && static_cast<Sum>(how.top_k) < count) {
      const auto wanted = static_cast<Sum>(how.top_k);
      if (wanted <= (fits ? in_list : count)) {
        Sum above = 0;
        least = Bisect({row, from, listed, false}, 0, top_key + 1, wanted, &above, scratch);
        equals = wanted - above;
      }  // else all that weighs anything stays
    }
    if (how.top_p < 1.0f) {
      const Measured weights{row, from, listed, true};
      Sum above_least = 0;
      weights.ForEach(
          [&](uint32_t key, Sum weight) { above_least += key > least ? weight : Sum{0}; });
      above_least = BlockSum(above_least, scratch);
      const Sum least_weight = least != 0 ? row.Weight(LogitOf(least)) : Sum{0};
      // Where top_k cuts nothing, the list may lack some of the total.
      const Sum kept = least != 0 ? above_least + equals * least_weight : total;
      const auto wanted =
          max(Sum{1}, static_cast<Sum>(static_cast<double>(how.top_p) * static_cast<double>(kept)));
      if (above_least >= wanted) {
        Sum above = 0;
        least = Bisect(weights, least + 1, top_key + 1, wanted, &above, scratch);
        const Sum weight = max(Sum{1}, row.Weight(LogitOf(least)));
        equals = (wanted - above + weight - 1) / weight;
      } else if (least_weight > 0) {
        equals = min(equals, (wanted - above_least + least_weight - 1) / least_weight);
      }
    }
  }
  // The draw, by ids: each thread has some that follow each other.
  const int each = (row.size + kThreads - 1) / kThreads;
  const int first = min(row.size, static_cast<int>(threadIdx.x) * each);
  const int last = min(row.size, first + each);
  Sum equal = 0, all = 0;
  for (int i = first; i < last; ++i)
    equal += row.Candidate(row.logits[i]) && KeyOf(row.logits[i]) == least ? 1 : 0;
  const Sum equal_before = BlockScan(equal, scratch, &all);
  const auto walk = [&](const auto& visit) {
    Sum met = equal_before;
    for (int i = first; i < last; ++i) {
      const float logit = row.logits[i];
      if (!row.Candidate(logit)) continue;
      const uint32_t key = KeyOf(logit);
      if (key < least || (key == least && met++ >= equals)) continue;
      visit(i, row.Weight(logit));
    }
  };
  Sum mine = 0, total = 0;
  walk([&](int, Sum weight) { mine += weight; });
  const Sum before = BlockScan(mine, scratch, &total);
  const Sum picked = __umul64hi(how.bits, total);
  if (picked >= before && picked < before + mine) {
    Sum sum = before;
    int chosen = -1;
    walk([&](int i, Sum weight) {
      sum += weight;
      if (chosen < 0 && sum > picked) chosen = i;
    });
    Store(args, how, which, chosen);
  }
}

}  // namespace

void LaunchSample(const SampleArgs& args, int max_logits, cudaStream_t stream) {
  LaunchEarly(SampleKernel, dim3(static_cast<unsigned>(max_logits)), kThreads, 0, stream, true,
              args);
}

}  // namespace isotherm::gpu
