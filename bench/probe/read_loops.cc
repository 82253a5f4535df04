#include "bench/probe/read_loops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/probe/read_loops.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::probe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<uint64_t, 8>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(D()));
constexpr int64_t kLineWords = 8;
constexpr int kLineVecs = static_cast<int>(kLineWords / kLanes);
constexpr int64_t kPageWords = 512;

// Adds a line to one sum for each of its vectors.
HWY_INLINE void AddLine(const uint64_t* line, V (&sums)[kLineVecs]) {
#pragma GCC unroll 8
  for (int v = 0; v < kLineVecs; ++v) {
    sums[v] = hn::Add(sums[v], hn::Load(D(), line + v * kLanes));
  }
}

HWY_INLINE uint64_t Total(const V (&sums)[kLineVecs]) {
  uint64_t total = 0;
  for (int v = 0; v < kLineVecs; ++v) {
    HWY_ALIGN uint64_t lanes[kLanes];
    hn::Store(sums[v], D(), lanes);
    for (const uint64_t lane : lanes) total += lane;
  }
  return total;
}

template <Fetch kFetch>
HWY_INLINE uint64_t Sum(const uint64_t* words, int64_t count) {
  V even[kLineVecs], odd[kLineVecs];
  for (int v = 0; v < kLineVecs; ++v) even[v] = odd[v] = hn::Zero(D());
  const auto fetch = [](const uint64_t* line) {
    if constexpr (kFetch == Fetch::kL2) __builtin_prefetch(line + 4096 / 8, 0, 2);
    if constexpr (kFetch == Fetch::kNonTemporal) __builtin_prefetch(line + 1024 / 8, 0, 0);
  };
  for (int64_t i = 0; i < count; i += 2 * kLineWords) {
    fetch(words + i);
    AddLine(words + i, even);
    fetch(words + i + kLineWords);
    AddLine(words + i + kLineWords, odd);
  }
  return Total(even) + Total(odd);
}

uint64_t SumWordsImpl(const uint64_t* words, int64_t count, Fetch fetch) {
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

enum class Pattern { kNone, kHeads, kAll, kAllNonTemporal };

template <int kStreams, Pattern kPattern>
HWY_INLINE void Bundles(const uint64_t* const* bundles, const uint64_t* const* next,
                        int lines_per_page, int64_t words, uint64_t* sums) {
  V sum[kStreams][kLineVecs];
  const uint64_t* from[kStreams];
  const uint64_t* after[kStreams];
  for (int s = 0; s < kStreams; ++s) {
    for (int v = 0; v < kLineVecs; ++v) sum[s][v] = hn::Zero(D());
    from[s] = bundles[s];
    after[s] = next[s];
  }
  for (int64_t page = 0; page < words; page += kPageWords) {
    if constexpr (kPattern == Pattern::kHeads) {
      for (int line = 0; line < lines_per_page; ++line) {
        for (int s = 0; s < kStreams; ++s) {
          __builtin_prefetch(after[s] + page + line * kLineWords, 0, 2);
        }
      }
    }
    for (int64_t i = page; i < page + kPageWords; i += kLineWords) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        if constexpr (kPattern == Pattern::kAll) __builtin_prefetch(after[s] + i, 0, 2);
        if constexpr (kPattern == Pattern::kAllNonTemporal) __builtin_prefetch(after[s] + i, 0, 0);
        AddLine(from[s] + i, sum[s]);
      }
    }
  }
  for (int s = 0; s < kStreams; ++s) sums[s] = Total(sum[s]);
}

template <int kStreams>
HWY_INLINE void BundlesBy(const uint64_t* const* bundles, const uint64_t* const* next,
                          const Ahead& ahead, int64_t words, uint64_t* sums) {
  const int lines = ahead.lines_per_page;
  if (lines == 0) return Bundles<kStreams, Pattern::kNone>(bundles, next, lines, words, sums);
  if (lines < 64) return Bundles<kStreams, Pattern::kHeads>(bundles, next, lines, words, sums);
  if (ahead.non_temporal) {
    return Bundles<kStreams, Pattern::kAllNonTemporal>(bundles, next, lines, words, sums);
  }
  Bundles<kStreams, Pattern::kAll>(bundles, next, lines, words, sums);
}

void SumBundlesImpl(const uint64_t* const* bundles, const uint64_t* const* next, int streams,
                    const Ahead& ahead, int64_t words, uint64_t* sums) {
  if (streams == 1) return BundlesBy<1>(bundles, next, ahead, words, sums);
  if (streams == 2) return BundlesBy<2>(bundles, next, ahead, words, sums);
  BundlesBy<4>(bundles, next, ahead, words, sums);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::probe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::probe {

HWY_EXPORT(SumWordsImpl);
HWY_EXPORT(SumBundlesImpl);

uint64_t SumWords(const uint64_t* words, int64_t count, Fetch fetch) {
  return HWY_DYNAMIC_DISPATCH(SumWordsImpl)(words, count, fetch);
}

void SumBundles(const uint64_t* const* bundles, const uint64_t* const* next, int streams,
                const Ahead& ahead, int64_t words, uint64_t* sums) {
  HWY_DYNAMIC_DISPATCH(SumBundlesImpl)(bundles, next, streams, ahead, words, sums);
}

}  // namespace isotherm::probe
#endif  // HWY_ONCE
