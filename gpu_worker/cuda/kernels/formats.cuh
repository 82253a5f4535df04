#pragma once

#include "gpu_worker/cuda/kernels/device_math.cuh"
#include "gpu_worker/cuda/kernels/device_matrix.h"

// How weights are decoded, for matrices (16-byte loads from aligned planes) and for bundles (the
// file's blocks, 8 columns at a time).
namespace isotherm::gpu {

__device__ inline float2 HalfPair(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ inline float2 BfloatPair(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

struct F32Format {
  static constexpr int kElems = 4;  // of one 16-byte load
  static constexpr bool kScaled = false;
  __device__ static void Decode(const uint4& raw, float* w) {
    w[0] = __uint_as_float(raw.x), w[1] = __uint_as_float(raw.y);
    w[2] = __uint_as_float(raw.z), w[3] = __uint_as_float(raw.w);
  }
  __host__ __device__ static constexpr int64_t RowBytes(int64_t padded) { return padded * 4; }
  // Columns col .. col + 8 of a bundle's row, col a multiple of 8, still encoded.
  struct Raw8 {
    uint4 a, b;
  };
  __device__ static Raw8 Load8(const unsigned char* row, int col) {
    const auto* at = reinterpret_cast<const uint4*>(row + int64_t{4} * col);
    return {__ldg(at), __ldg(at + 1)};
  }
  __device__ static void Decode8(const Raw8& raw, int col, float* w) {
    Decode(raw.a, w);
    Decode(raw.b, w + 4);
  }
};

template <bool kBf16>
struct Format16 {
  static constexpr int kElems = 8;
  static constexpr bool kScaled = false;
  __device__ static float2 Pair(uint32_t bits) {
    if constexpr (kBf16) return BfloatPair(bits);
    return HalfPair(bits);
  }
  __device__ static void Decode(const uint4& raw, float* w) {
    const float2 a = Pair(raw.x), b = Pair(raw.y), c = Pair(raw.z), d = Pair(raw.w);
    w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
    w[4] = c.x, w[5] = c.y, w[6] = d.x, w[7] = d.y;
  }
  __host__ __device__ static constexpr int64_t RowBytes(int64_t padded) { return padded * 2; }
  using Raw8 = uint4;
  __device__ static Raw8 Load8(const unsigned char* row, int col) {
    return __ldg(reinterpret_cast<const uint4*>(row + int64_t{2} * col));
  }
  __device__ static void Decode8(const Raw8& raw, int col, float* w) { Decode(raw, w); }
};
using F16Format = Format16<false>;
using Bf16Format = Format16<true>;

// Eight columns of a block with a scale: the scale, and the 8 bytes that hold them.
struct BlockRaw8 {
  uint16_t scale;
  uint16_t pairs[4];
};
__device__ inline BlockRaw8 LoadBlock8(const unsigned char* block, int first_pair) {
  const auto* const halves = reinterpret_cast<const uint16_t*>(block);
  return {__ldg(halves),
          {__ldg(halves + first_pair), __ldg(halves + first_pair + 1),
           __ldg(halves + first_pair + 2), __ldg(halves + first_pair + 3)}};
}

struct Q8Format {
  static constexpr int kElems = 16;
  static constexpr bool kScaled = true;
  __device__ static void Decode(const uint4& raw, float* w) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      w[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (8 * (i % 4))));
  }
  __host__ __device__ static constexpr int64_t RowBytes(int64_t padded) { return padded; }
  using Raw8 = BlockRaw8;
  __device__ static Raw8 Load8(const unsigned char* row, int col) {
    return LoadBlock8(row + int64_t{34} * (col / 32), 1 + col % 32 / 2);
  }
  __device__ static void Decode8(const Raw8& raw, int col, float* w) {
    const float scale = __half2float(__ushort_as_half(raw.scale));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = scale * static_cast<float>(static_cast<int8_t>(raw.pairs[i]));
      w[2 * i + 1] = scale * static_cast<float>(static_cast<int8_t>(raw.pairs[i] >> 8));
    }
  }
};

struct Q4Format {
  static constexpr int kElems = 32;
  static constexpr bool kScaled = true;
  __device__ static void Decode(const uint4& raw, float* w) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t byte = words[i / 4] >> (8 * (i % 4));
      w[i] = static_cast<float>(static_cast<int>(byte & 15u) - 8);
      w[i + 16] = static_cast<float>(static_cast<int>(byte >> 4 & 15u) - 8);
    }
  }
  __host__ __device__ static constexpr int64_t RowBytes(int64_t padded) { return padded / 2; }
  using Raw8 = BlockRaw8;
  __device__ static Raw8 Load8(const unsigned char* row, int col) {
    return LoadBlock8(row + int64_t{18} * (col / 32), 1 + col % 16 / 2);
  }
  __device__ static void Decode8(const Raw8& raw, int col, float* w) {
    const float scale = __half2float(__ushort_as_half(raw.scale));
    const int shift = col % 32 >= 16 ? 4 : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = static_cast<uint32_t>(raw.pairs[i]) >> shift;
      w[2 * i] = scale * static_cast<float>(static_cast<int>(pair & 15u) - 8);
      w[2 * i + 1] = scale * static_cast<float>(static_cast<int>(pair >> 8 & 15u) - 8);
    }
  }
};

}  // namespace isotherm::gpu
