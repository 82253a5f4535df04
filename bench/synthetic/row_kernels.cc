#include "bench/synthetic/row_kernels.h"

#include <cmath>
#include <cstring>

#include "bench/synthetic/random_stream.h"
#include "common/base/check.h"
#include "common/tensor/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/synthetic/row_kernels.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::synthetic_internal {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR  // machines without AVX2: the same in plain loops

void DrawLevelsImpl(const uint64_t* seeds, const int8_t* table, int64_t count, int8_t* levels) {
  for (int64_t lane = 0; lane < 8; ++lane) {
    uint64_t s0 = seeds[lane];
    uint64_t s1 = seeds[8 + lane];
    for (int64_t at = lane * 8; at < count; at += 128) {
      const uint64_t word = s0 + s1;
      const uint64_t t = s0 ^ (s0 << 23);
      s0 = s1;
      s1 = t ^ s1 ^ (t >> 18) ^ (s1 >> 5);
      for (int byte = 0; byte < 8; ++byte) {
        levels[at + byte] = table[(word >> (8 * byte)) & 15];
        levels[at + 64 + byte] = table[(word >> (8 * byte + 4)) & 15];
      }
    }
  }
}

int64_t MixRowsImpl(const bench::MixedRows& mix, int64_t count, int8_t* out) {
  int64_t square = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int sum = mix.signs[0] * mix.rows[0][i] + mix.signs[1] * mix.rows[1][i] +
                    mix.signs[2] * mix.rows[2][i];
    out[i] = static_cast<int8_t>(sum);
    square += sum * sum;
  }
  return square;
}

void Encode16Impl(const int8_t* levels, int64_t count, const uint8_t* table, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[2 * i] = table[levels[i] & 15];
    out[2 * i + 1] = table[16 + (levels[i] & 15)];
  }
}

void EncodeQ4Impl(const int8_t* levels, int64_t count, uint16_t scale, uint8_t* out) {
  for (int64_t i = 0; i < count; i += 32, out += 18) {
    std::memcpy(out, &scale, 2);
    for (int64_t j = 0; j < 16; ++j) {
      out[2 + j] = static_cast<uint8_t>((levels[i + j] + 8) | (levels[i + j + 16] + 8) << 4);
    }
  }
}

#else

namespace hn = hwy::HWY_NAMESPACE;

using D8 = hn::CappedTag<uint8_t, 64>;
using DI8 = hn::RebindToSigned<D8>;
using D64 = hn::Repartition<uint64_t, D8>;
constexpr int64_t kLanes8 = static_cast<int64_t>(hn::MaxLanes(D8()));
constexpr int64_t kLanes64 = kLanes8 / 8;

// A word of 64 bits a lane and round; a round of eight lanes gives 128 levels: the low nibbles of
// its 64 bytes, then the high ones.
void DrawLevelsImpl(const uint64_t* seeds, const int8_t* table, int64_t count, int8_t* levels) {
  const D8 d8;
  const D64 d64;
  const auto values = hn::LoadDup128(DI8(), table);
  const auto low = hn::Set(d8, uint8_t{0x0f});
  const hn::Repartition<uint16_t, D8> d16;
  for (int64_t lane = 0; lane < 8; lane += kLanes64) {
    auto s0 = hn::LoadU(d64, seeds + lane);
    auto s1 = hn::LoadU(d64, seeds + 8 + lane);
    for (int64_t at = lane * 8; at < count; at += 128) {
      const auto word = hn::Add(s0, s1);
      const auto t = hn::Xor(s0, hn::ShiftLeft<23>(s0));
      s0 = s1;
      s1 = hn::Xor(hn::Xor(t, s1), hn::Xor(hn::ShiftRight<18>(t), hn::ShiftRight<5>(s1)));
      const auto bytes = hn::BitCast(d8, word);
      const auto high = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, word)));
      hn::StoreU(hn::TableLookupBytes(values, hn::BitCast(DI8(), hn::And(bytes, low))), DI8(),
                 levels + at);
      hn::StoreU(hn::TableLookupBytes(values, hn::BitCast(DI8(), hn::And(high, low))), DI8(),
                 levels + at + 64);
    }
  }
}

int64_t MixRowsImpl(const bench::MixedRows& mix, int64_t count, int8_t* out) {
  const DI8 d8;
  const hn::Repartition<int16_t, DI8> d16;
  const hn::Repartition<int32_t, DI8> d32;
  const hn::Half<DI8> half;
  // x ^ -1 - -1 = -x.
  const auto m0 = hn::Set(d8, static_cast<int8_t>(mix.signs[0] < 0 ? -1 : 0));
  const auto m1 = hn::Set(d8, static_cast<int8_t>(mix.signs[1] < 0 ? -1 : 0));
  const auto m2 = hn::Set(d8, static_cast<int8_t>(mix.signs[2] < 0 ? -1 : 0));
  const auto bias = hn::Add(hn::Add(m0, m1), m2);
  auto sum0 = hn::Zero(d32);
  auto sum1 = hn::Zero(d32);
  for (int64_t i = 0; i < count; i += kLanes8) {
    const auto a = hn::Xor(hn::LoadU(d8, mix.rows[0] + i), m0);
    const auto b = hn::Xor(hn::LoadU(d8, mix.rows[1] + i), m1);
    const auto c = hn::Xor(hn::LoadU(d8, mix.rows[2] + i), m2);
    const auto sum = hn::Sub(hn::Add(hn::Add(a, b), c), bias);
    hn::StoreU(sum, d8, out + i);
    const auto lower = hn::PromoteTo(d16, hn::LowerHalf(half, sum));
    const auto upper = hn::PromoteTo(d16, hn::UpperHalf(half, sum));
    sum0 = hn::ReorderWidenMulAccumulate(d32, lower, lower, sum0, sum1);
    sum0 = hn::ReorderWidenMulAccumulate(d32, upper, upper, sum0, sum1);
  }
  return hn::GetLane(hn::SumOfLanes(d32, hn::Add(sum0, sum1)));
}

// table: the 16-bit value of each level, by its low four bits, low bytes then high bytes.
void Encode16Impl(const int8_t* levels, int64_t count, const uint8_t* table, uint8_t* out) {
  const hn::CappedTag<uint16_t, 32> d16;
  const hn::Rebind<uint8_t, decltype(d16)> d8;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d16));
  const auto low_bytes = hn::LoadDup128(d8, table);
  const auto high_bytes = hn::LoadDup128(d8, table + 16);
  const auto mask = hn::Set(d8, uint8_t{0x0f});
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto index = hn::And(hn::LoadU(d8, reinterpret_cast<const uint8_t*>(levels) + i), mask);
    const auto low = hn::PromoteTo(d16, hn::TableLookupBytes(low_bytes, index));
    const auto high = hn::PromoteTo(d16, hn::TableLookupBytes(high_bytes, index));
    hn::StoreU(hn::Or(low, hn::ShiftLeft<8>(high)), d16, reinterpret_cast<uint16_t*>(out + 2 * i));
  }
  for (; i < count; ++i) {
    out[2 * i] = table[levels[i] & 15];
    out[2 * i + 1] = table[16 + (levels[i] & 15)];
  }
}

// Blocks of 32: the scale, then level + 8 in four bits, element i beside element i + 16.
void EncodeQ4Impl(const int8_t* levels, int64_t count, uint16_t scale, uint8_t* out) {
  const hn::CappedTag<uint8_t, 16> d;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d));
  const auto mask = hn::Set(d, uint8_t{0x0f});
  const auto eight = hn::Set(d, uint8_t{8});
  const hn::Repartition<uint16_t, decltype(d)> d16;
  for (int64_t i = 0; i < count; i += 32, out += 18) {
    std::memcpy(out, &scale, 2);
    for (int64_t j = 0; j < 16; j += kLanes) {
      const auto* at = reinterpret_cast<const uint8_t*>(levels) + i + j;
      const auto low = hn::And(hn::Xor(hn::LoadU(d, at), eight), mask);
      const auto high = hn::And(hn::Xor(hn::LoadU(d, at + 16), eight), mask);
      // No bit leaves its byte: the values are below 16.
      const auto shifted = hn::BitCast(d, hn::ShiftLeft<4>(hn::BitCast(d16, high)));
      hn::StoreU(hn::Or(low, shifted), d, out + 2 + j);
    }
  }
}

#endif  // HWY_TARGET

// Blocks of 32: the scale, then a byte a level.
void EncodeQ8Impl(const int8_t* levels, int64_t count, uint16_t scale, uint8_t* out) {
  for (int64_t i = 0; i < count; i += 32, out += 34) {
    std::memcpy(out, &scale, 2);
    std::memcpy(out + 2, levels + i, 32);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::synthetic_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace synthetic_internal {
HWY_EXPORT(DrawLevelsImpl);
HWY_EXPORT(MixRowsImpl);
HWY_EXPORT(Encode16Impl);
HWY_EXPORT(EncodeQ8Impl);
HWY_EXPORT(EncodeQ4Impl);
}  // namespace synthetic_internal

namespace bench {

using namespace synthetic_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

void DrawLevels(uint64_t seed, const LevelTable& table, int64_t count, int8_t* levels) {
  ISOTHERM_CHECK(count % kLevelGroup == 0);
  RandomStream random({.seed = seed});
  std::array<uint64_t, 16> seeds;
  for (uint64_t& word : seeds) word = random.Next();
  HWY_DYNAMIC_DISPATCH(DrawLevelsImpl)(seeds.data(), table.data(), count, levels);
}

int64_t MixRows(const MixedRows& mix, int64_t count, int8_t* out) {
  ISOTHERM_CHECK(count % 64 == 0);
  return HWY_DYNAMIC_DISPATCH(MixRowsImpl)(mix, count, out);
}

void EncodeLevels(DType dtype, const int8_t* levels, int64_t count, int exponent, std::byte* out) {
  auto* const bytes = reinterpret_cast<uint8_t*>(out);
  switch (dtype) {
    case DType::kF16:
    case DType::kBF16: {
      std::array<uint8_t, 32> table;
      for (int i = 0; i < 16; ++i) {
        const float value = std::ldexp(static_cast<float>(i < 8 ? i : i - 16), exponent);
        const uint16_t bits = dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
        table[static_cast<size_t>(i)] = static_cast<uint8_t>(bits & 0xff);
        table[static_cast<size_t>(16 + i)] = static_cast<uint8_t>(bits >> 8);
      }
      return HWY_DYNAMIC_DISPATCH(Encode16Impl)(levels, count, table.data(), bytes);
    }
    case DType::kQ8_0:
      ISOTHERM_CHECK(count % 32 == 0);
      return HWY_DYNAMIC_DISPATCH(EncodeQ8Impl)(levels, count, F32ToF16(std::ldexp(1.0f, exponent)),
                                                bytes);
    case DType::kQ4_0:
      ISOTHERM_CHECK(count % 32 == 0);
      return HWY_DYNAMIC_DISPATCH(EncodeQ4Impl)(levels, count, F32ToF16(std::ldexp(1.0f, exponent)),
                                                bytes);
    default:
      ISOTHERM_CHECK(false);
  }
}

}  // namespace bench
}  // namespace isotherm
#endif  // HWY_ONCE
