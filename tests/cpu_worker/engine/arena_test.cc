#include "cpu_worker/engine/arena.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "common/base/exit_code.h"
#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

TEST(ArenaTest, HoldsEveryBundleWithAnyNumberOfThreads) {
  const BundleSource source = ToySource();
  for (const int threads : {1, 2, 5}) {
    double last = 0;
    auto arena = Arena::Load(source, {.num_threads = threads, .progress = [&](double share) {
                                        EXPECT_GE(share, last);
                                        last = share;
                                        return true;
                                      }});
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(last, 1);
    const shm::ArenaGeometry& geometry = (*arena)->geometry();
    std::vector<std::byte> want(static_cast<size_t>(geometry.layer_bytes()));
    for (int64_t layer = 0; layer < geometry.shape.num_layers; ++layer) {
      ASSERT_TRUE(source.pack(layer, 0, geometry.shape.num_neurons, want.data()).ok());
      EXPECT_EQ(std::memcmp(want.data(), (*arena)->layer(layer), want.size()), 0);
    }
  }
}

TEST(ArenaTest, AFailingSourceFailsTheLoad) {
  BundleSource source = ToySource();
  source.pack = [](int64_t layer, int64_t, int64_t, std::byte*) {
    return layer == 1 ? absl::DataLossError("cut short") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsDataLoss(Arena::Load(source, {.num_threads = 2}).status()));
}

TEST(ArenaTest, LoadingCanBeStopped) {
  const auto arena =
      Arena::Load(ToySource(), {.progress = [](double share) { return share < 0.5; }});
  EXPECT_TRUE(absl::IsCancelled(arena.status()));
}

TEST(ArenaTest, TooLittleMemoryIsAShortage) {
  const auto arena = Arena::Load(ToySource(), {.limits = {.available = 1000}});
  EXPECT_EQ(ExitCodeOf(arena.status()), ExitCode::kShortage);
}

TEST(ArenaTest, DigestsDependOnEveryBitAndOnOrder) {
  std::vector<std::byte> bytes(192);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i * 7);
  const uint64_t digest = DigestOf(bytes.data(), 192);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_NE(DigestOf(bytes.data(), 192), digest) << bit;
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
  }
  std::swap_ranges(bytes.begin(), bytes.begin() + 64, bytes.begin() + 64);
  EXPECT_NE(DigestOf(bytes.data(), 192), digest);
}

}  // namespace
}  // namespace isotherm::cpu
