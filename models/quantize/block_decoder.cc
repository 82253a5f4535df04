#include "models/quantize/block_decoder.h"

#include <cstdint>
#include <cstring>

#include "common/base/check.h"
#include "common/tensor/half.h"

namespace isotherm {
namespace {

constexpr int kBlock = 32;        // elements of a plain block, and of a part of a super-block
constexpr int kSuperBlock = 256;  // of the K types
constexpr float kNoMin = -0.0f;   // changes no bit of what it is added to

float LoadHalf(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return F16ToF32(bits);
}

bool HalfFinite(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return (bits & 0x7c00u) != 0x7c00u;
}

unsigned Byte(const std::byte* at) { return static_cast<unsigned>(*at); }

// d, i8 q[32]: d * q
void DecodeQ8_0(const std::byte* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < kBlock; ++i) {
    out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

// q[16], low nibbles first: d * (n - 8), or d * n + m.
void DecodeNibbles(const std::byte* q, float d, int zero, float m, float* out) {
  for (int i = 0; i < kBlock / 2; ++i) {
    const unsigned byte = Byte(q + i);
    out[i] = d * static_cast<float>(static_cast<int>(byte & 15) - zero) + m;
    out[i + kBlock / 2] = d * static_cast<float>(static_cast<int>(byte >> 4) - zero) + m;
  }
}

// u32 h, q[16]: nibbles with a fifth bit each, bit i of h being element i's.
void DecodeFiveBits(const std::byte* at, float d, int zero, float m, float* out) {
  uint32_t high;
  std::memcpy(&high, at, 4);
  for (int i = 0; i < kBlock / 2; ++i) {
    const unsigned byte = Byte(at + 4 + i);
    const unsigned first = (byte & 15) | (high >> i & 1) << 4;
    const unsigned second = byte >> 4 | (high >> (i + kBlock / 2) & 1) << 4;
    out[i] = d * static_cast<float>(static_cast<int>(first) - zero) + m;
    out[i + kBlock / 2] = d * static_cast<float>(static_cast<int>(second) - zero) + m;
  }
}

struct ScaleAndMin {
  unsigned scale, min;
};

// The 6-bit pair of part j of 8, from 12 bytes.
ScaleAndMin UnpackPair(const std::byte* sc, int j) {
  if (j < 4) return {Byte(sc + j) & 63, Byte(sc + j + 4) & 63};
  return {(Byte(sc + j + 4) & 15) | (Byte(sc + j - 4) >> 6) << 4,
          Byte(sc + j + 4) >> 4 | (Byte(sc + j) >> 6) << 4};
}

// d, dmin, sc[12], (five bits: h[32],) q[128]: d * s * n - dmin * m. Two parts of 32 share 32 bytes
// of q, low nibbles first; part j's fifth bits are bit j of h's bytes.
void DecodeFourOrFiveBitParts(const std::byte* block, bool five_bits, float* out) {
  const float d = LoadHalf(block), dmin = LoadHalf(block + 2);
  const std::byte* const sc = block + 4;
  const std::byte* const h = sc + 12;
  const std::byte* q = five_bits ? h + 32 : h;
  for (int j = 0; j < kSuperBlock / kBlock; ++j) {
    const ScaleAndMin pair = UnpackPair(sc, j);
    const float scale = d * static_cast<float>(pair.scale);
    const float min = dmin * static_cast<float>(pair.min);
    for (int l = 0; l < kBlock; ++l) {
      unsigned n = j % 2 == 0 ? Byte(q + l) & 15 : Byte(q + l) >> 4;
      if (five_bits) n |= (Byte(h + l) >> j & 1) << 4;
      *out++ = scale * static_cast<float>(n) - min;
    }
    if (j % 2 == 1) q += kBlock;
  }
}

// lo[128], hi[64], i8 s[16], d: d * s * (n - 32). Each half of 128 elements has 64 bytes of low
// nibbles and 32 of high pairs of bits.
void DecodeQ6_K(const std::byte* block, float* out) {
  const std::byte* lo = block;
  const std::byte* hi = block + 128;
  const std::byte* s = block + 192;
  const float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half, lo += 64, hi += 32, s += 8, out += 128) {
    for (int l = 0; l < kBlock; ++l) {
      const unsigned bits = Byte(hi + l);
      const unsigned n[4] = {
          (Byte(lo + l) & 15) | (bits & 3) << 4, (Byte(lo + l + 32) & 15) | (bits >> 2 & 3) << 4,
          Byte(lo + l) >> 4 | (bits >> 4 & 3) << 4, Byte(lo + l + 32) >> 4 | (bits >> 6) << 4};
      for (int g = 0; g < 4; ++g) {
        const auto scale = static_cast<float>(static_cast<int8_t>(s[2 * g + l / 16]));
        out[g * kBlock + l] = d * scale * static_cast<float>(static_cast<int>(n[g]) - 32);
      }
    }
  }
}

}  // namespace

void DecodeBlock(DType dtype, const std::byte* block, float* out) {
  switch (dtype) {
    case DType::kQ8_0:
      return DecodeQ8_0(block, out);
    case DType::kQ4_0:
      return DecodeNibbles(block + 2, LoadHalf(block), 8, kNoMin, out);
    case DType::kQ4_1:
      return DecodeNibbles(block + 4, LoadHalf(block), 0, LoadHalf(block + 2), out);
    case DType::kQ5_0:
      return DecodeFiveBits(block + 2, LoadHalf(block), 16, kNoMin, out);
    case DType::kQ5_1:
      return DecodeFiveBits(block + 4, LoadHalf(block), 0, LoadHalf(block + 2), out);
    case DType::kQ4_K:
      return DecodeFourOrFiveBitParts(block, false, out);
    case DType::kQ5_K:
      return DecodeFourOrFiveBitParts(block, true, out);
    case DType::kQ6_K:
      return DecodeQ6_K(block, out);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  ISOTHERM_CHECK(!"a type of blocks");
}

bool BlockFinite(DType dtype, const std::byte* block) {
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return HalfFinite(block) && HalfFinite(block + 2);
    case DType::kQ6_K:
      return HalfFinite(block + 208);
    default:
      return HalfFinite(block);
  }
}

}  // namespace isotherm
