#pragma once

#include <cstdint>

namespace isotherm::gpu {

// Keys and values of one layer in pages of kPageSize tokens, 16 bits each (F16, or BF16 if `bf16`):
// [page][kv_head][token of the page][head_dim].
struct KvLayerView {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  bool bf16 = false;

  int64_t Offset(int64_t page, int64_t kv_head, int64_t token) const;
};

// out[head_dim] = softmax(q . K^T / sqrt(head_dim)) V over positions 0 .. kv_len of one query head.
// q: [head_dim] f32. pages: the sequence's page table, at least ceil(kv_len / kPageSize) entries.
// scores: [kv_len] scratch. Source: scaled dot-product attention, Vaswani et al. 2017,
// arXiv:1706.03762; pages as in PagedAttention, Kwon et al. 2023, arXiv:2309.06180. Any thread.
void AttendHead(const float* q, const KvLayerView& kv, int64_t kv_head, const int32_t* pages,
                int64_t kv_len, float* scores, float* out);

// Rotary embedding of one head in place, interleaved pairs (2i, 2i + 1), with cos and sin of
// [rope_dims / 2]. Source: RoFormer, Su et al. 2021, arXiv:2104.09864.
void RopeInterleaved(float* head, const float* cos, const float* sin, int64_t rope_dims);

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. Source: RMSNorm, Zhang and Sennrich 2019,
// arXiv:1910.07467. The sum of squares runs in fixed lanes: the bits depend on x alone.
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out);

}  // namespace isotherm::gpu
