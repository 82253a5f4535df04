#include "bench/probe/read_loops.h"

namespace isotherm::probe {
namespace {

// Eight words; the compiler makes one AVX-512, two AVX2 or four SSE2 operations of each.
using Lane8 [[gnu::vector_size(64), gnu::may_alias]] = uint64_t;

[[gnu::always_inline]] inline uint64_t Total(const Lane8& v) {
  return v[0] + v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7];
}

template <Fetch kFetch>
[[gnu::always_inline]] inline uint64_t Sum(const uint64_t* words, int64_t count) {
  constexpr int64_t kAhead = 4096 / 8;
  Lane8 sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const auto* const line = reinterpret_cast<const Lane8*>(words + i);
    for (int k = 0; k < 4; ++k) {
      if constexpr (kFetch == Fetch::kL2) __builtin_prefetch(words + i + k * 8 + kAhead, 0, 2);
      if constexpr (kFetch == Fetch::kNonTemporal) {
        __builtin_prefetch(words + i + k * 8 + kAhead / 4, 0, 0);
      }
    }
    sum0 += line[0];
    sum1 += line[1];
    sum2 += line[2];
    sum3 += line[3];
  }
  for (; i < count; i += 8) sum0 += *reinterpret_cast<const Lane8*>(words + i);
  sum0 += sum1;
  sum2 += sum3;
  sum0 += sum2;
  return Total(sum0);
}

[[gnu::always_inline]] inline uint64_t SumAny(const uint64_t* words, int64_t count, Fetch fetch) {
  switch (fetch) {
    case Fetch::kNone:
      return Sum<Fetch::kNone>(words, count);
    case Fetch::kL2:
      return Sum<Fetch::kL2>(words, count);
    case Fetch::kNonTemporal:
      return Sum<Fetch::kNonTemporal>(words, count);
  }
  return 0;
}

template <int kStreams, bool kAhead>
[[gnu::always_inline]] inline void Bundles(const uint64_t* const* bundles,
                                           const uint64_t* const* ahead, int64_t words,
                                           uint64_t* sums) {
  Lane8 sum[kStreams] = {};
  for (int64_t i = 0; i < words; i += 8) {
    for (int s = 0; s < kStreams; ++s) {
      if constexpr (kAhead) __builtin_prefetch(ahead[s] + i, 0, 2);
      sum[s] += *reinterpret_cast<const Lane8*>(bundles[s] + i);
    }
  }
  for (int s = 0; s < kStreams; ++s) sums[s] = Total(sum[s]);
}

[[gnu::always_inline]] inline void BundlesAny(const uint64_t* const* bundles,
                                              const uint64_t* const* ahead, int streams,
                                              int64_t words, uint64_t* sums) {
  if (ahead == nullptr) {
    if (streams == 1) return Bundles<1, false>(bundles, ahead, words, sums);
    if (streams == 2) return Bundles<2, false>(bundles, ahead, words, sums);
    return Bundles<4, false>(bundles, ahead, words, sums);
  }
  if (streams == 1) return Bundles<1, true>(bundles, ahead, words, sums);
  if (streams == 2) return Bundles<2, true>(bundles, ahead, words, sums);
  return Bundles<4, true>(bundles, ahead, words, sums);
}

#if defined(__x86_64__)
[[gnu::target("avx512f")]] uint64_t SumAvx512(const uint64_t* words, int64_t count, Fetch fetch) {
  return SumAny(words, count, fetch);
}
[[gnu::target("avx2")]] uint64_t SumAvx2(const uint64_t* words, int64_t count, Fetch fetch) {
  return SumAny(words, count, fetch);
}
[[gnu::target("avx512f")]] void BundlesAvx512(const uint64_t* const* bundles,
                                              const uint64_t* const* ahead, int streams,
                                              int64_t words, uint64_t* sums) {
  BundlesAny(bundles, ahead, streams, words, sums);
}
[[gnu::target("avx2")]] void BundlesAvx2(const uint64_t* const* bundles,
                                         const uint64_t* const* ahead, int streams, int64_t words,
                                         uint64_t* sums) {
  BundlesAny(bundles, ahead, streams, words, sums);
}
#endif

}  // namespace

uint64_t SumWords(const uint64_t* words, int64_t count, Fetch fetch) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return SumAvx512(words, count, fetch);
  if (__builtin_cpu_supports("avx2")) return SumAvx2(words, count, fetch);
#endif
  return SumAny(words, count, fetch);
}

void SumBundles(const uint64_t* const* bundles, const uint64_t* const* ahead, int streams,
                int64_t words, uint64_t* sums) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    return BundlesAvx512(bundles, ahead, streams, words, sums);
  }
  if (__builtin_cpu_supports("avx2")) return BundlesAvx2(bundles, ahead, streams, words, sums);
#endif
  BundlesAny(bundles, ahead, streams, words, sums);
}

}  // namespace isotherm::probe
