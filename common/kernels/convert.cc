#include "common/kernels/convert.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kernels/matrix_view.h"
#include "common/tensor/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/convert.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/decode-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {
namespace {

using DU = hn::Rebind<uint32_t, DF>;

// Calls full(i) for whole vectors of `count` elements and one(i) for the rest.
template <typename Full, typename One>
HWY_INLINE void Walk(size_t count, const Full& full, const One& one) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) full(i);
  for (; i < count; ++i) one(i);
}

// Highway's conversion to F16 truncates without the F16C instruction.
constexpr bool kHasF16c = HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3;

HWY_INLINE hn::Vec<D16> NearestF16(VF v) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::BitCast(D16(), hn::DemoteTo(dh, v));
}

// The bits of the nearest bfloat16 in the upper half of each lane, zero below.
HWY_INLINE hn::Vec<DU> NearestBf16(VF v) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto nan = hn::RebindMask(du, hn::IsNaN(v));
  return hn::And(hn::IfThenElse(nan, quiet, rounded), hn::Set(du, 0xffff0000u));
}

void F32ToF16Impl(const float* in, size_t count, uint16_t* out) {
  const auto one = [&](size_t i) { out[i] = F32ToF16(in[i]); };
  if constexpr (kHasF16c) {
    Walk(
        count, [&](size_t i) { hn::StoreU(NearestF16(hn::LoadU(DF(), in + i)), D16(), out + i); },
        one);
  } else {
    for (size_t i = 0; i < count; ++i) one(i);
  }
}

void RoundToF16Impl(float* values, size_t count) {
  const auto one = [&](size_t i) { values[i] = F16ToF32(F32ToF16(values[i])); };
  if constexpr (kHasF16c) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    Walk(
        count,
        [&](size_t i) {
          const auto half = hn::BitCast(dh, NearestF16(hn::LoadU(DF(), values + i)));
          hn::StoreU(hn::PromoteTo(DF(), half), DF(), values + i);
        },
        one);
  } else {
    for (size_t i = 0; i < count; ++i) one(i);
  }
}

void F32ToBf16Impl(const float* in, size_t count, uint16_t* out) {
  Walk(
      count,
      [&](size_t i) {
        const auto upper = hn::ShiftRight<16>(NearestBf16(hn::LoadU(DF(), in + i)));
        hn::StoreU(hn::DemoteTo(D16(), hn::BitCast(DI(), upper)), D16(), out + i);
      },
      [&](size_t i) { out[i] = F32ToBf16(in[i]); });
}

void RoundToBf16Impl(float* values, size_t count) {
  Walk(
      count,
      [&](size_t i) {
        const auto bits = NearestBf16(hn::LoadU(DF(), values + i));
        hn::StoreU(hn::BitCast(DF(), bits), DF(), values + i);
      },
      [&](size_t i) { values[i] = Bf16ToF32(F32ToBf16(values[i])); });
}

void DecodeRowImpl(DType dtype, const uint8_t* row, int64_t columns, float* out) {
  WithType(dtype, [&](auto type) {
    const int64_t whole = columns / kLanes * kLanes;
    DecodeSpan<type()>(row, 0, whole, row, out);
    if (whole == columns) return;
    // DecodeSpan pads with zeros; out has no room for them.
    HWY_ALIGN float tail[kLanes];
    hn::Store(Decoder<type()>::Tail(row, whole, columns - whole), DF(), tail);
    std::memcpy(out + whole, tail, static_cast<size_t>(columns - whole) * sizeof(float));
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace kernels_internal {
HWY_EXPORT(F32ToF16Impl);
HWY_EXPORT(F32ToBf16Impl);
HWY_EXPORT(RoundToF16Impl);
HWY_EXPORT(RoundToBf16Impl);
HWY_EXPORT(DecodeRowImpl);
}  // namespace kernels_internal

using namespace kernels_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

void F32ToF16(std::span<const float> in, std::span<uint16_t> out) {
  ISOTHERM_CHECK(in.size() == out.size());
  HWY_DYNAMIC_DISPATCH(F32ToF16Impl)(in.data(), in.size(), out.data());
}

void F32ToBf16(std::span<const float> in, std::span<uint16_t> out) {
  ISOTHERM_CHECK(in.size() == out.size());
  HWY_DYNAMIC_DISPATCH(F32ToBf16Impl)(in.data(), in.size(), out.data());
}

void F16ToF32(std::span<const uint16_t> in, std::span<float> out) {
  ISOTHERM_CHECK(in.size() == out.size());
  HWY_DYNAMIC_DISPATCH(DecodeRowImpl)
  (DType::kF16, reinterpret_cast<const uint8_t*>(in.data()), static_cast<int64_t>(in.size()),
   out.data());
}

void Bf16ToF32(std::span<const uint16_t> in, std::span<float> out) {
  ISOTHERM_CHECK(in.size() == out.size());
  HWY_DYNAMIC_DISPATCH(DecodeRowImpl)
  (DType::kBF16, reinterpret_cast<const uint8_t*>(in.data()), static_cast<int64_t>(in.size()),
   out.data());
}

void RoundToF16(std::span<float> values) {
  HWY_DYNAMIC_DISPATCH(RoundToF16Impl)(values.data(), values.size());
}

void RoundToBf16(std::span<float> values) {
  HWY_DYNAMIC_DISPATCH(RoundToBf16Impl)(values.data(), values.size());
}

absl::Status DecodeRow(DType dtype, const std::byte* row, int64_t row_bytes, std::span<float> out) {
  const int64_t columns = static_cast<int64_t>(out.size());
  ISOTHERM_RETURN_IF_ERROR(ValidateRowType(dtype, columns));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t wanted, RowBytes(dtype, columns));
  if (row_bytes < wanted) {
    return absl::InvalidArgumentError(absl::StrCat("row of ", row_bytes, " bytes; ", columns, " ",
                                                   Name(dtype), " take ", wanted));
  }
  HWY_DYNAMIC_DISPATCH(DecodeRowImpl)
  (dtype, reinterpret_cast<const uint8_t*>(row), columns, out.data());
  return absl::OkStatus();
}

}  // namespace isotherm
#endif  // HWY_ONCE
