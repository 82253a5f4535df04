#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "hwy/aligned_allocator.h"

namespace isotherm::gpu {

// A fixed array on a cache line of its own, zero at first.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t size)
      : data_(hwy::AllocateAligned<T>(static_cast<size_t>(std::max<int64_t>(1, size)))) {
    std::fill_n(data_.get(), size, T());
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  hwy::AlignedFreeUniquePtr<T[]> data_;
};

struct StepShape {
  int64_t max_rows = 0, model_dim = 0, q_dim = 0, kv_dim = 0, ffn_dim = 0;
  int64_t max_rank = 0;  // of the predictors; 0: none
  int64_t rope_half = 0;
};

// Activations of a step on the host, row-major, made once. Written by the engine thread's sections.
struct StepBuffers {
  explicit StepBuffers(const StepShape& s)
      : words((s.ffn_dim + 63) / 64),
        x(s.max_rows * s.model_dim),
        h(s.max_rows * s.model_dim),
        z(s.max_rows * s.model_dim),
        hot_partial(s.max_rows * s.model_dim),
        cold_partial(s.max_rows * s.model_dim),
        cut_partial(s.max_rows * s.model_dim),
        q(s.max_rows * s.q_dim),
        attention(s.max_rows * s.q_dim),
        k(s.max_rows * s.kv_dim),
        v(s.max_rows * s.kv_dim),
        hidden(s.max_rows * s.max_rank),
        scores(s.max_rank > 0 ? s.max_rows * s.ffn_dim : 0),
        rope_cos(s.max_rows * s.rope_half),
        rope_sin(s.max_rows * s.rope_half),
        z16(s.max_rows * s.model_dim),
        active(s.max_rows * words),
        step_keys(static_cast<size_t>(s.max_rows)) {}

  int64_t words;                           // of a bitmap
  AlignedArray<float> x, h, z;             // [rows, model_dim]: residual, normed inputs
  AlignedArray<float> hot_partial;         // [rows, model_dim]
  AlignedArray<float> cold_partial;        // [rows, model_dim]
  AlignedArray<float> cut_partial;         // [rows, model_dim]: cold neurons from the cut on
  AlignedArray<float> q, attention;        // [rows, q_dim]
  AlignedArray<float> k, v;                // [rows, kv_dim]
  AlignedArray<float> hidden;              // [rows, rank of the layer]
  AlignedArray<float> scores;              // [rows, ffn_dim]
  AlignedArray<float> rope_cos, rope_sin;  // [rows, rope_half]
  AlignedArray<uint16_t> z16;              // [rows, model_dim], the same values as z
  AlignedArray<uint64_t> active;           // [rows, words]
  std::vector<uint64_t> step_keys;         // [rows], of the work hash
};

}  // namespace isotherm::gpu
