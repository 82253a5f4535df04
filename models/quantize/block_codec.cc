#include "models/quantize/block_codec.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tensor/half.h"
#include "models/quantize/block_decoder.h"

namespace isotherm {
namespace {

constexpr int kBlock = 32;

void StoreHalf(std::byte* at, float value) {
  const uint16_t bits = F32ToF16(value);
  std::memcpy(at, &bits, 2);
}

float Inverse(float d) {
  const float size = std::abs(d);
  return size >= std::numeric_limits<float>::min() && std::isfinite(size) ? 1.0f / d : 0.0f;
}

// Eight bytes at a time: a lane whose exponent bits are all set carries into its sign bit.
bool PlainFinite(const std::byte* at, int64_t bytes, uint64_t exponent, uint64_t lowest) {
  const uint64_t sign = exponent + lowest;
  uint64_t found = 0;
  for (; bytes >= 8; bytes -= 8, at += 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    found |= (word & exponent) + lowest;
  }
  uint64_t word = 0;
  std::memcpy(&word, at, static_cast<size_t>(bytes));
  found |= (word & exponent) + lowest;
  return (found & sign) == 0;
}

void PackNibbles(const uint8_t* n, std::byte* out) {
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = static_cast<std::byte>(n[i] | (n[i + kBlock / 2] << 4));
  }
}

void EncodeBlock(DType dtype, const float* x, std::byte* block) {
  uint8_t n[kBlock];
  switch (dtype) {
    case DType::kQ8_0: {
      float top = 0;
      for (int i = 0; i < kBlock; ++i) top = std::max(top, std::abs(x[i]));
      const float d = top / 127.0f;
      const float inverse = Inverse(d);
      StoreHalf(block, d);
      for (int i = 0; i < kBlock; ++i) {
        block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(x[i] * inverse)));
      }
      return;
    }
    case DType::kQ4_0: {
      float top = 0, signed_top = 0;
      for (int i = 0; i < kBlock; ++i) {
        if (std::abs(x[i]) > top) {
          top = std::abs(x[i]);
          signed_top = x[i];
        }
      }
      const float d = signed_top / -8.0f;
      const float inverse = Inverse(d);
      StoreHalf(block, d);
      for (int i = 0; i < kBlock; ++i) {
        // Not negative. Halves round up, as other writers of the format do.
        // NOLINTNEXTLINE(bugprone-incorrect-roundings)
        n[i] = static_cast<uint8_t>(std::min(15, static_cast<int>(x[i] * inverse + 8.5f)));
      }
      PackNibbles(n, block + 2);
      return;
    }
    default: {  // Q4_1
      const auto [low, high] = std::minmax_element(x, x + kBlock);
      const float d = (*high - *low) / 15.0f;
      const float inverse = Inverse(d);
      StoreHalf(block, d);
      StoreHalf(block + 2, *low);
      for (int i = 0; i < kBlock; ++i) {
        // Not negative. Halves round up, as other writers of the format do.
        // NOLINTNEXTLINE(bugprone-incorrect-roundings)
        n[i] = static_cast<uint8_t>(std::min(15, static_cast<int>((x[i] - *low) * inverse + 0.5f)));
      }
      PackNibbles(n, block + 4);
    }
  }
}

}  // namespace

bool CanEncode(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      return true;
    default:
      return false;
  }
}

absl::Status DecodeRow(DType dtype, const std::byte* row, std::span<float> out) {
  ISOTHERM_RETURN_IF_ERROR(RowBytes(dtype, static_cast<int64_t>(out.size())).status());
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out.data(), row, out.size_bytes());
      return absl::OkStatus();
    case DType::kF16:
    case DType::kBF16:
      for (size_t i = 0; i < out.size(); ++i) {
        uint16_t bits;
        std::memcpy(&bits, row + 2 * i, 2);
        out[i] = dtype == DType::kF16 ? F16ToF32(bits) : Bf16ToF32(bits);
      }
      return absl::OkStatus();
    default: {
      const DTypeInfo& info = Info(dtype);
      const auto step = static_cast<size_t>(info.block_elements);
      for (size_t i = 0; i < out.size(); i += step, row += info.block_bytes) {
        DecodeBlock(dtype, row, out.data() + i);
      }
      return absl::OkStatus();
    }
  }
}

absl::Status EncodeRow(DType dtype, std::span<const float> in, std::byte* row) {
  ISOTHERM_RETURN_IF_ERROR(RowBytes(dtype, static_cast<int64_t>(in.size())).status());
  if (!CanEncode(dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no encoder for ", Name(dtype), "; encode to Q8_0 or Q4_0"));
  }
  switch (dtype) {
    case DType::kF32:
      std::memcpy(row, in.data(), in.size_bytes());
      return absl::OkStatus();
    case DType::kF16:
    case DType::kBF16:
      for (size_t i = 0; i < in.size(); ++i) {
        const uint16_t bits = dtype == DType::kF16 ? F32ToF16(in[i]) : F32ToBf16(in[i]);
        std::memcpy(row + 2 * i, &bits, 2);
      }
      return absl::OkStatus();
    default:
      for (size_t i = 0; i < in.size(); i += kBlock, row += Info(dtype).block_bytes) {
        EncodeBlock(dtype, in.data() + i, row);
      }
      return absl::OkStatus();
  }
}

bool AllFinite(DType dtype, const std::byte* row, int64_t columns) {
  switch (dtype) {
    case DType::kF32:
      return PlainFinite(row, columns * 4, 0x7f8000007f800000u, 0x0080000000800000u);
    case DType::kF16:
      return PlainFinite(row, columns * 2, 0x7c007c007c007c00u, 0x0400040004000400u);
    case DType::kBF16:
      return PlainFinite(row, columns * 2, 0x7f807f807f807f80u, 0x0080008000800080u);
    default: {
      const DTypeInfo& info = Info(dtype);
      bool finite = true;
      for (int64_t i = 0; i < columns; i += info.block_elements, row += info.block_bytes) {
        finite &= BlockFinite(dtype, row);
      }
      return finite;
    }
  }
}

}  // namespace isotherm
