#pragma once

#include <cstdint>

#include "gpu_worker/host/ops/kv_layout.h"

namespace isotherm::gpu {

// Query heads of one row that share a KV head.
struct AttendParams {
  const float* q = nullptr;  // [num_heads, head_dim] f32
  int64_t num_heads = 0;     // at most kMaxGroup
  KvLayerView kv;
  int64_t kv_head = 0;
  const int32_t* pages = nullptr;  // the sequence's page table, ceil(kv_len / kPageSize) entries
  int64_t kv_len = 0;              // at least 1
  float* scratch = nullptr;        // AttendScratch(kv_len, head_dim) floats
  float* out = nullptr;            // [num_heads, head_dim] f32
};

// Heads of one call: each key and value is decoded once for all of them.
inline constexpr int64_t kMaxGroup = 8;

inline constexpr int64_t AttendScratch(int64_t kv_len, int64_t head_dim) {
  return kMaxGroup * ((kv_len + 63) / 64 * 64) + (head_dim + 63) / 64 * 64;
}

// out[h] = softmax(q[h] . K^T / sqrt(head_dim)) V over positions 0 .. kv_len - 1.
// Source: scaled dot-product attention, Vaswani et al. 2017, arXiv:1706.03762; pages as in
// PagedAttention, Kwon et al. 2023, arXiv:2309.06180. Sums in f32, in an order that depends on
// kv_len alone: the bits of a head are the same in any group. Any thread.
void Attend(const AttendParams& params);

}  // namespace isotherm::gpu
