#pragma once

#include <cstdint>

#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {

// Keys and values of one layer in pages of kPageSize tokens, 16 bits each (F16, or BF16 if `bf16`):
// [page][kv_head][token of the page][head_dim].
struct KvLayerView {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  bool bf16 = false;

  // Elements from the start of keys or values.
  int64_t Offset(int64_t page, int64_t kv_head, int64_t token) const {
    return ((page * num_kv_heads + kv_head) * kPageSize + token) * head_dim;
  }
};

}  // namespace isotherm::gpu
