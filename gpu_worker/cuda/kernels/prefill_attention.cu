#include <cfloat>
#include <type_traits>

#include "gpu_worker/cuda/kernels/formats.cuh"
#include "gpu_worker/cuda/kernels/prefill.h"
#include "gpu_worker/cuda/kernels/product.cuh"

// Attention of many rows with matrix units. A block takes kRows rows of one query head, a warp 16
// of them, against kKeys cached tokens at a time. Queries and weights are F32 in decoding, so each
// is taken as the sum of two 16-bit values: what is computed differs from decoding by F32 rounding
// only. Source of the online softmax: Dao et al. 2022, arXiv:2205.14135. Register layouts: PTX,
// mma.m16n8k16.
namespace isotherm::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 16 * kThreads / kWarp;
constexpr int kKeys = 64;
constexpr int kPad = 8;  // halves behind a staged row: neighbours then begin in other banks

template <bool kBf16>
__device__ inline void Multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kBf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Two values as a pair of 16 bits, and what the pair lacks as another.
template <bool kBf16>
__device__ inline void Split(float x, float y, uint32_t* high, uint32_t* low) {
  const uint16_t hx = Bits16(x, kBf16), hy = Bits16(y, kBf16);
  *high = static_cast<uint32_t>(hx) | static_cast<uint32_t>(hy) << 16;
  *low = static_cast<uint32_t>(Bits16(x - From16(hx, kBf16), kBf16)) |
         static_cast<uint32_t>(Bits16(y - From16(hy, kBf16), kBf16)) << 16;
}

__device__ inline void LoadTransposed(uint32_t (&b)[2], const uint16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(address));
}

// 16 bytes to shared memory beside whatever the thread does; zeros if it is not there.
__device__ inline void CopyAsync(uint16_t* to, const uint16_t* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}

// Keys and values of one round, in two stages: while one is worked on the next comes.
template <int kDim>
constexpr int kStage = 2 * kKeys*(kDim + kPad);  // halves

template <int kDim, bool kBf16>
__global__ void __launch_bounds__(kThreads)
    PrefillAttentionKernel(AttentionArgs args, int num_rows) {
  constexpr int kStride = kDim + kPad;
  constexpr int kSteps = kDim / 16;
  extern __shared__ __align__(16) uint16_t stages[];
  const AttentionShape& shape = args.shape;
  const int head = blockIdx.y;
  const int kv_head = head / (shape.num_q_heads / shape.num_kv_heads);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int group = lane / 4, quad = lane % 4;
  const int tile = blockIdx.x * kRows;  // of q and out
  const int own[2] = {tile + warp * 16 + group, tile + warp * 16 + group + 8};
  const float scale = rsqrtf(static_cast<float>(kDim));

  uint32_t q_high[kSteps][4], q_low[kSteps][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = own[part % 2], column = s * 16 + 2 * quad + (part / 2) * 8;
      float x = 0, y = 0;
      if (row < num_rows) {
        const float* const q = args.q + (int64_t{row} * shape.num_q_heads + head) * kDim + column;
        x = q[0];
        y = q[1];
      }
      Split<kBf16>(x, y, &q_high[s][part], &q_low[s][part]);
    }
  }
  int position[2], table[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool there = own[i] < num_rows;
    position[i] = there ? args.step.rows[args.first_row + own[i]].position : -1;
    table[i] = there ? args.step.rows[args.first_row + own[i]].table : -1;
  }
  float out[kDim / 8][4] = {};
  float top[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};

  // Rows of several sequences in one tile take a round each; a row takes part in its own.
  const int last_row = min(tile + kRows, num_rows);
  for (int begin = tile; begin < last_row;) {
    const int sequence = args.step.rows[args.first_row + begin].table;
    int end = begin + 1;
    while (end < last_row && args.step.rows[args.first_row + end].table == sequence) ++end;
    // Positions ascend in a sequence's rows.
    const int length = args.step.rows[args.first_row + end - 1].position + 1;
    const int32_t* const pages =
        args.step.page_tables + int64_t{sequence} * args.step.header->max_pages;
    const auto fetch = [&](int key0) {
      uint16_t* const stage = stages + key0 / kKeys % 2 * kStage<kDim>;
      constexpr int kPieces = kDim / 8;  // of a row, 16 bytes each
      for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
        const int token = key0 + i / kPieces, piece = i % kPieces;
        const bool there = token < length;
        const int64_t at =
            there
                ? ((int64_t{pages[token / 16]} * shape.num_kv_heads + kv_head) * 16 + token % 16) *
                          kDim +
                      piece * 8
                : 0;
        uint16_t* const to = stage + (i / kPieces) * kStride + piece * 8;
        CopyAsync(to, args.kv.keys + at, there);
        CopyAsync(to + kKeys * kStride, args.kv.values + at, there);
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(0);
    for (int key0 = 0; key0 < length; key0 += kKeys) {
      if (key0 + kKeys < length) {
        fetch(key0 + kKeys);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
      } else {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
      }
      __syncthreads();
      const uint16_t* const keys = stages + key0 / kKeys % 2 * kStage<kDim>;
      const uint16_t* const values = keys + kKeys * kStride;
      float score[kKeys / 8][4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          const uint16_t* const row = keys + (n * 8 + group) * kStride + s * 16 + 2 * quad;
          const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(row),
                                 *reinterpret_cast<const uint32_t*>(row + 8)};
          Multiply<kBf16>(score[n], q_high[s], b);
          Multiply<kBf16>(score[n], q_low[s], b);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool takes_part = table[i] == sequence;
        float best = top[i];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int token = key0 + n * 8 + 2 * quad + j;
            float& value = score[n][2 * i + j];
            value = takes_part && token <= position[i] ? value * scale : -FLT_MAX;
            best = fmaxf(best, value);
          }
        }
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        const float keep = __expf(top[i] - best);
        top[i] = best;
        float total = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& value = score[n][2 * i + j];
            value = value == -FLT_MAX ? 0.0f : __expf(value - best);
            total += value;
          }
        }
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        sum[i] = sum[i] * keep + total;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          out[d][2 * i] *= keep;
          out[d][2 * i + 1] *= keep;
        }
      }
#pragma unroll
      for (int s = 0; s < kKeys / 16; ++s) {
        uint32_t high[4], low[4];
        Split<kBf16>(score[2 * s][0], score[2 * s][1], &high[0], &low[0]);
        Split<kBf16>(score[2 * s][2], score[2 * s][3], &high[1], &low[1]);
        Split<kBf16>(score[2 * s + 1][0], score[2 * s + 1][1], &high[2], &low[2]);
        Split<kBf16>(score[2 * s + 1][2], score[2 * s + 1][3], &high[3], &low[3]);
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          uint32_t b[2];
          LoadTransposed(b, values + (s * 16 + lane % 16) * kStride + d * 8);
          Multiply<kBf16>(out[d], high, b);
          Multiply<kBf16>(out[d], low, b);
        }
      }
      __syncthreads();  // the stage is free
    }
    begin = end;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (own[i] >= num_rows) continue;
    float* const to = args.out + (int64_t{own[i]} * shape.num_q_heads + head) * kDim + 2 * quad;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      to[d * 8] = out[d][2 * i] / sum[i];
      to[d * 8 + 1] = out[d][2 * i + 1] / sum[i];
    }
  }
}

}  // namespace

void LaunchPrefillAttention(const AttentionArgs& args, int num_rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((num_rows + kRows - 1) / kRows),
                  static_cast<unsigned>(args.shape.num_q_heads));
  const auto launch = [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    const int shared = 2 * kStage<kDim> * static_cast<int>(sizeof(uint16_t));
    const auto kernel =
        args.shape.bf16 ? PrefillAttentionKernel<kDim, true> : PrefillAttentionKernel<kDim, false>;
    AllowShared(kernel, shared);
    kernel<<<grid, kThreads, shared, stream>>>(args, num_rows);
  };
  switch (args.shape.head_dim) {
    case 16:
      return launch(std::integral_constant<int, 16>());
    case 64:
      return launch(std::integral_constant<int, 64>());
    case 128:
      return launch(std::integral_constant<int, 128>());
    default:  // by the decoding kernel, row by row
      return LaunchAttention(args, num_rows, stream);
  }
}

}  // namespace isotherm::gpu
