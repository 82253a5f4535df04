#include <cfloat>
#include <type_traits>

#include "gpu_worker/cuda/kernels/product.cuh"

// Paged attention of single rows: each sees its own sequence up to itself. A block takes one row,
// up to kHeads query heads that share a key head, and one of kAttentionSplits ranges of tokens; the
// last block of a row's heads puts the ranges together. Source of the online softmax and of the
// split: Dao et al. 2022, arXiv:2205.14135; Milakov and Gimelshein 2018, arXiv:1805.02867.
namespace isotherm::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeads = 4;
constexpr int kDims = 8;  // of a head, in one lane

struct Softmax {
  float top, sum;
};

// Layout of scratch: counters [max_rows, groups], then for each (row, query head, split) top, sum
// and head_dim values.
__host__ __device__ inline int64_t CounterBytes(int groups, int max_rows) {
  return (int64_t{4} * groups * max_rows + 255) / 256 * 256;
}
__host__ __device__ inline int GroupsOf(const AttentionShape& shape) {
  const int share = shape.num_q_heads / shape.num_kv_heads;
  return shape.num_kv_heads * ((share + kHeads - 1) / kHeads);
}

// kLanes: lanes that share a token, a power of two with kLanes * kDims >= head_dim.
template <int kLanes>
__global__ void __launch_bounds__(kThreads) AttentionKernel(AttentionArgs args) {
  LetNextBegin();
  AwaitPrevious();
  const StepHeader& header = *args.step.header;
  const int row = blockIdx.z;  // of q and out
  if (args.first_row + row >= header.num_rows) return;
  const AttentionShape& shape = args.shape;
  const int share = shape.num_q_heads / shape.num_kv_heads;
  const int pieces = (share + kHeads - 1) / kHeads;
  const int group = blockIdx.x;
  const int kv_head = group / pieces;
  const int first_head = kv_head * share + group % pieces * kHeads;
  const int num_heads = min(kHeads, (kv_head + 1) * share - first_head);
  const int head_dim = shape.head_dim;
  const StepRow& what = args.step.rows[args.first_row + row];
  const int32_t* const pages = args.step.page_tables + int64_t{what.table} * header.max_pages;
  const int length = what.position + 1;
  const int split = blockIdx.y;
  // Ranges are whole pages.
  const int range = ((length + args.splits - 1) / args.splits + 15) / 16 * 16;
  const int begin = split * range, end = min(length, begin + range);

  constexpr int kTokens = kWarp / kLanes;  // at a time, of a warp
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int dim0 = lane % kLanes * kDims;
  const bool has_dims = dim0 < head_dim;
  const float scale = rsqrtf(static_cast<float>(head_dim));

  float q[kHeads][kDims], acc[kHeads][kDims];
  Softmax soft[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    soft[h] = {-FLT_MAX, 0};
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      acc[h][d] = 0;
      q[h][d] =
          has_dims && h < num_heads
              ? args.q[(int64_t{row} * shape.num_q_heads + first_head + h) * head_dim + dim0 + d]
              : 0.0f;
    }
  }
  for (int t0 = begin + warp * kTokens; t0 < end; t0 += kWarps * kTokens) {
    const int t = t0 + lane / kLanes;
    const bool live = t < end;
    uint4 key = {0, 0, 0, 0}, value = {0, 0, 0, 0};
    if (live && has_dims) {
      const int64_t at =
          ((int64_t{pages[t / 16]} * shape.num_kv_heads + kv_head) * 16 + t % 16) * head_dim + dim0;
      key = *reinterpret_cast<const uint4*>(args.kv.keys + at);
      value = *reinterpret_cast<const uint4*>(args.kv.values + at);
    }
    float k[kDims], v[kDims];
    if (shape.bf16) {
      Bf16Format::Decode(key, k);
      Bf16Format::Decode(value, v);
    } else {
      F16Format::Decode(key, k);
      F16Format::Decode(value, v);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float dot = 0;
#pragma unroll
      for (int d = 0; d < kDims; ++d) dot += q[h][d] * k[d];
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2)
        dot += __shfl_xor_sync(0xffffffffu, dot, offset);
      if (!live) continue;
      const float score = dot * scale;
      const float top = fmaxf(soft[h].top, score);
      const float keep = __expf(soft[h].top - top), weight = __expf(score - top);
      soft[h] = {top, soft[h].sum * keep + weight};
#pragma unroll
      for (int d = 0; d < kDims; ++d) acc[h][d] = acc[h][d] * keep + weight * v[d];
    }
  }

  // Token groups of the warp, then warps.
  __shared__ float shared_acc[kWarps][kHeads][kWarp * kDims];
  __shared__ Softmax shared_soft[kWarps][kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) {
      const float other_top = __shfl_xor_sync(0xffffffffu, soft[h].top, offset);
      const float other_sum = __shfl_xor_sync(0xffffffffu, soft[h].sum, offset);
      const float top = fmaxf(soft[h].top, other_top);
      const float mine = __expf(soft[h].top - top), theirs = __expf(other_top - top);
      soft[h] = {top, soft[h].sum * mine + other_sum * theirs};
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        const float other = __shfl_xor_sync(0xffffffffu, acc[h][d], offset);
        acc[h][d] = acc[h][d] * mine + other * theirs;
      }
    }
    if (lane < kLanes) {
#pragma unroll
      for (int d = 0; d < kDims; ++d) shared_acc[warp][h][dim0 + d] = acc[h][d];
    }
    if (lane == 0) shared_soft[warp][h] = soft[h];
  }
  __syncthreads();

  const int groups = GroupsOf(shape);
  auto* const counters = reinterpret_cast<uint32_t*>(args.scratch);
  auto* const parts = reinterpret_cast<float*>(args.scratch + CounterBytes(groups, args.max_rows));
  const auto part = [&](int head, int s) {
    return parts +
           ((int64_t{row} * shape.num_q_heads + head) * kAttentionSplits + s) * (head_dim + 2);
  };
  for (int i = threadIdx.x; i < num_heads * head_dim; i += kThreads) {
    const int h = i / head_dim, d = i % head_dim;
    float top = -FLT_MAX, sum = 0, out = 0;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, shared_soft[w][h].top);
    for (int w = 0; w < kWarps; ++w) {
      const float weight = __expf(shared_soft[w][h].top - top);
      sum += shared_soft[w][h].sum * weight;
      out += shared_acc[w][h][d] * weight;
    }
    if (args.splits == 1) {
      args.out[(int64_t{row} * shape.num_q_heads + first_head + h) * head_dim + d] = out / sum;
      continue;
    }
    float* const to = part(first_head + h, split);
    to[2 + d] = out;
    if (d == 0) {
      to[0] = top;
      to[1] = sum;
    }
  }
  if (args.splits == 1) return;
  __threadfence();
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) {
    uint32_t* const counter = counters + int64_t{row} * groups + group;
    last = atomicAdd(counter, 1u) == static_cast<uint32_t>(args.splits) - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < num_heads * head_dim; i += kThreads) {
    const int h = i / head_dim, d = i % head_dim;
    float top = -FLT_MAX, sum = 0, out = 0;
    for (int s = 0; s < args.splits; ++s) top = fmaxf(top, __ldcg(part(first_head + h, s)));
    for (int s = 0; s < args.splits; ++s) {
      const float* const from = part(first_head + h, s);
      const float weight = __expf(__ldcg(from) - top);
      sum += __ldcg(from + 1) * weight;
      out += __ldcg(from + 2 + d) * weight;
    }
    args.out[(int64_t{row} * shape.num_q_heads + first_head + h) * head_dim + d] = out / sum;
  }
}

}  // namespace

int64_t AttentionScratchBytes(const AttentionShape& shape, int max_rows) {
  return CounterBytes(GroupsOf(shape), max_rows) +
         int64_t{4} * max_rows * shape.num_q_heads * kAttentionSplits * (shape.head_dim + 2);
}

void LaunchAttention(const AttentionArgs& args, int max_rows, cudaStream_t stream) {
  const dim3 grid(GroupsOf(args.shape), args.splits, max_rows);
  const int lanes = (args.shape.head_dim + kDims - 1) / kDims;
  const auto launch = [&](auto count) {
    LaunchEarly(AttentionKernel<decltype(count)::value>, grid, kThreads, 0, stream, args.early,
                args);
  };
  if (lanes <= 1) return launch(std::integral_constant<int, 1>());
  if (lanes <= 2) return launch(std::integral_constant<int, 2>());
  if (lanes <= 4) return launch(std::integral_constant<int, 4>());
  if (lanes <= 8) return launch(std::integral_constant<int, 8>());
  if (lanes <= 16) return launch(std::integral_constant<int, 16>());
  launch(std::integral_constant<int, 32>());
}

}  // namespace isotherm::gpu
