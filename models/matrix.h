#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "common/tensor/dtype.h"

namespace isotherm {

// Owned bytes, 64-byte aligned, with 64 spare bytes behind so that a vector load of the last
// element stays inside.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* at) const { std::free(at); }
  };
  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

// Weights of one matrix, row-major: a row is one output.
struct Matrix {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_bytes = 0;
  AlignedBytes storage;

  const std::byte* data() const { return storage.data(); }
};

}  // namespace isotherm
