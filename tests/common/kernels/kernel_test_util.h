#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/kernels/matrix_view.h"
#include "common/tensor/half.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace isotherm {

// Every instruction set that was compiled in and that this machine has.
inline std::vector<int64_t> MachineTargets() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  return targets;
}

// Dispatches to one target while it lives.
class ScopedTarget {
 public:
  explicit ScopedTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~ScopedTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

inline const std::vector<DType>& KernelTypes() {
  static const auto* types =
      new std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};
  return *types;
}

// Weights whose values are small: uniform in about [-1, 1], or integers in [-limit, limit].
class RandomWeights {
 public:
  explicit RandomWeights(uint32_t seed) : random_(seed) {}

  // Writes one row of `columns` elements to `out`. integer_limit 0: fractions.
  void Fill(DType dtype, int64_t columns, int integer_limit, std::byte* out) {
    for (int64_t k = 0; k < columns;) {
      switch (dtype) {
        case DType::kF32:
          out = Put(out, Value(integer_limit));
          ++k;
          break;
        case DType::kF16:
          out = Put(out, F32ToF16(Value(integer_limit)));
          ++k;
          break;
        case DType::kBF16:
          out = Put(out, F32ToBf16(Value(integer_limit)));
          ++k;
          break;
        case DType::kQ8_0:
          out = Put(out, F32ToF16(integer_limit > 0 ? 1.0f : Value(0) / 127));
          for (int i = 0; i < 32; ++i) {
            out = Put(out, static_cast<int8_t>(integer_limit > 0 ? Value(integer_limit)
                                                                 : Int(-127, 127)));
          }
          k += 32;
          break;
        case DType::kQ4_0:
          out = Put(out, F32ToF16(integer_limit > 0 ? 1.0f : Value(0) / 8));
          for (int i = 0; i < 16; ++i) {
            const int low = integer_limit > 0 ? static_cast<int>(Value(integer_limit)) : Int(-8, 7);
            const int high =
                integer_limit > 0 ? static_cast<int>(Value(integer_limit)) : Int(-8, 7);
            out = Put(out, static_cast<uint8_t>((low + 8) | (high + 8) << 4));
          }
          k += 32;
          break;
        default:
          GTEST_FAIL();
      }
    }
  }

  float Value(int integer_limit) {
    if (integer_limit > 0) return static_cast<float>(Int(-integer_limit, integer_limit));
    return std::uniform_real_distribution<float>(-1, 1)(random_);
  }
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }

 private:
  template <typename T>
  static std::byte* Put(std::byte* out, T value) {
    std::memcpy(out, &value, sizeof(T));
    return out + sizeof(T);
  }
  std::mt19937 random_;
};

// A matrix with its memory: `shift` bytes off alignment, rows `gap` bytes apart.
struct OwnedMatrix {
  OwnedMatrix(DType dtype, int64_t rows, int64_t columns, int integer_limit, uint32_t seed,
              int shift = 0, int gap = 0) {
    view = {dtype, rows, columns, RowBytes(dtype, columns).value() + gap, nullptr};
    // Exactly as long as the last row needs, so that reading past it is caught by sanitizers.
    bytes.resize(shift + (rows > 0 ? rows * view.row_bytes - gap : 0));
    view.data = bytes.data() + shift;
    RandomWeights random(seed);
    for (int64_t r = 0; r < rows; ++r) {
      random.Fill(dtype, columns, integer_limit, bytes.data() + shift + r * view.row_bytes);
    }
  }
  std::vector<std::byte> bytes;
  MatrixView view;
};

inline std::string TargetTypeName(const testing::TestParamInfo<std::tuple<int64_t, DType>>& info) {
  return std::string(hwy::TargetName(std::get<0>(info.param))) + "_" +
         std::string(Name(std::get<1>(info.param)));
}

}  // namespace isotherm
