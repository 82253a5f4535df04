#include "models/bundle_layout.h"

#include <numeric>

#include "common/base/checked_math.h"

namespace isotherm {

uint64_t BundleLayout::Hash() const {
  uint64_t hash = 0xcbf29ce484222325u;
  constexpr uint64_t kLayoutVersion = 1;
  for (const uint64_t word :
       {kLayoutVersion, static_cast<uint64_t>(dtype), static_cast<uint64_t>(rows),
        static_cast<uint64_t>(model_dim), static_cast<uint64_t>(bundle_bytes),
        static_cast<uint64_t>(num_neurons), static_cast<uint64_t>(num_layers)}) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

int64_t BundleColumns(DType dtype, int rows, int64_t model_dim) {
  const DTypeInfo& info = Info(dtype);
  const int64_t blocks = rows * (model_dim / info.block_elements);
  const int64_t whole = 64 / std::gcd<int64_t>(64, info.block_bytes);  // blocks in 64 n bytes
  return CeilDiv(blocks, whole) * whole * info.block_elements;
}

}  // namespace isotherm
