#include "gpu_worker/engine/hot_pool.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu_worker/engine/small_bundles.h"

namespace isotherm::gpu {
namespace {

constexpr const BundleLayout& kLayout = kSmallBundles;

using Ids = std::vector<std::vector<int64_t>>;  // [layer]: hot neurons

PlacementPlan Plan(int64_t epoch, const Ids& ids) {
  PlacementPlan plan{.epoch = epoch};
  for (const auto& layer_ids : ids) {
    LayerPlacement layer{.num_neurons = kLayout.num_neurons};
    layer.hot.assign(2, 0);
    for (const int64_t n : layer_ids)
      layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << n % 64;
    layer.num_hot = static_cast<int64_t>(layer_ids.size());
    plan.layers.push_back(layer);
  }
  return plan;
}

class HotPoolTest : public testing::Test {
 protected:
  // A bundle is its layer and neuron number over and over.
  absl::Status Prepare(const PlacementPlan& plan) {
    return pool_.Prepare(plan,
                         [this](int64_t layer, int64_t neuron, int32_t slot) {
                           ++copies_;
                           if (copies_ == fail_at_) return absl::DataLossError("bad file");
                           std::memset(storage_.data() + slot * kLayout.bundle_bytes,
                                       static_cast<int>(layer * 100 + neuron),
                                       static_cast<size_t>(kLayout.bundle_bytes));
                           return absl::OkStatus();
                         },
                         {});
  }
  absl::Status Compact() {
    return pool_.Compact(
        [this](int32_t from, int32_t to) {
          if (++moves_ == fail_move_at_) return absl::DataLossError("no copy");
          std::memcpy(storage_.data() + to * kLayout.bundle_bytes,
                      storage_.data() + from * kLayout.bundle_bytes,
                      static_cast<size_t>(kLayout.bundle_bytes));
          return absl::OkStatus();
        },
        [this](const std::shared_ptr<const EpochTables>&) {
          ++published_;
          return absl::OkStatus();
        });
  }
  void ExpectHolds(const EpochTables& tables, const Ids& ids) {
    for (size_t l = 0; l < ids.size(); ++l) {
      for (int64_t n = 0; n < kLayout.num_neurons; ++n) {
        const bool hot = std::find(ids[l].begin(), ids[l].end(), n) != ids[l].end();
        const int32_t slot = tables.layers[l].slot_of[static_cast<size_t>(n)];
        EXPECT_EQ(slot >= 0, hot);
        EXPECT_EQ(tables.layers[l].hot[static_cast<size_t>(n / 64)] >> (n % 64) & 1, hot ? 1u : 0u);
        EXPECT_EQ(tables.layers[l].cold[static_cast<size_t>(n / 64)] >> (n % 64) & 1,
                  hot ? 0u : 1u);
        if (!hot) continue;
        const auto want = static_cast<std::byte>(static_cast<int64_t>(l) * 100 + n);
        const std::byte* bundle = storage_.data() + slot * kLayout.bundle_bytes;
        EXPECT_EQ(bundle[0], want);
        EXPECT_EQ(bundle[kLayout.bundle_bytes - 1], want);
      }
      EXPECT_EQ(tables.layers[l].cold[1] >> (kLayout.num_neurons - 64), 0u);
    }
  }

  HotPool pool_{kLayout, 6, 12};
  std::vector<std::byte> storage_ =
      std::vector<std::byte>(static_cast<size_t>(12 * kLayout.bundle_bytes));
  int copies_ = 0, fail_at_ = -1;
  int moves_ = 0, fail_move_at_ = -1, published_ = 0;
};

TEST_F(HotPoolTest, EpochZeroHasNoHotNeuron) {
  ExpectHolds(*pool_.Find(0), {{}, {}});
  EXPECT_EQ(pool_.capacity_bytes(), 6 * kLayout.bundle_bytes);
  EXPECT_EQ(pool_.used_bytes(), 0);
  EXPECT_EQ(pool_.Retire(0).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HotPoolTest, OnlyNewNeuronsAreCopied) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 65}, {3}})).ok());
  EXPECT_EQ(copies_, 3);
  ASSERT_TRUE(Prepare(Plan(2, {{65, 66}, {3, 4}})).ok());
  EXPECT_EQ(copies_, 5);
  ExpectHolds(*pool_.Find(1), {{0, 65}, {3}});
  ExpectHolds(*pool_.Find(2), {{65, 66}, {3, 4}});
  ASSERT_TRUE(Prepare(Plan(2, {{1}, {1}})).ok());  // prepared already: nothing happens
  ExpectHolds(*pool_.Find(2), {{65, 66}, {3, 4}});
}

TEST_F(HotPoolTest, RetireFreesWhatNoOtherEpochUses) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 65}, {3}})).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{65}, {}})).ok());
  ASSERT_TRUE(pool_.Retire(1).ok());
  EXPECT_EQ(pool_.Find(1), nullptr);
  EXPECT_EQ(pool_.used_bytes(), kLayout.bundle_bytes);
  ExpectHolds(*pool_.Find(2), {{65}, {}});
  EXPECT_EQ(pool_.Retire(1).code(), absl::StatusCode::kNotFound);
}

TEST_F(HotPoolTest, RetiredEpochKeepsItsSlotsWhileAStepHoldsIt) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 1, 2, 3, 4, 5}, {}})).ok());
  std::shared_ptr<const EpochTables> pinned = pool_.Find(1);
  ASSERT_TRUE(pool_.Retire(1).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{10, 11, 12, 13, 14, 15}, {}})).ok());
  ExpectHolds(*pinned, {{0, 1, 2, 3, 4, 5}, {}});
  const absl::Status full = Prepare(Plan(3, {{}, {20}}));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  pinned.reset();
  EXPECT_TRUE(Prepare(Plan(3, {{}, {20}})).ok());
  ExpectHolds(*pool_.Find(2), {{10, 11, 12, 13, 14, 15}, {}});
}

TEST_F(HotPoolTest, FreedSlotsAreNobodysAndNoOthers) {
  std::vector<int32_t> freed;
  pool_.SetOnFreed([&](int32_t slot) {
    freed.push_back(slot);
    std::memset(storage_.data() + slot * kLayout.bundle_bytes, 0xff,
                static_cast<size_t>(kLayout.bundle_bytes));
  });
  ASSERT_TRUE(Prepare(Plan(1, {{0, 65}, {3}})).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{65, 66}, {}})).ok());
  std::shared_ptr<const EpochTables> pinned = pool_.Find(1);
  ASSERT_TRUE(pool_.Retire(1).ok());
  EXPECT_TRUE(freed.empty());  // a step holds them
  ExpectHolds(*pinned, {{0, 65}, {3}});
  const int32_t kept = pinned->layers[0].slot_of[65];
  pinned.reset();
  ASSERT_TRUE(Prepare(Plan(3, {{65}, {}})).ok());
  EXPECT_EQ(freed.size(), 2u);
  EXPECT_EQ(std::count(freed.begin(), freed.end(), kept), 0);
  ExpectHolds(*pool_.Find(2), {{65, 66}, {}});
  ExpectHolds(*pool_.Find(3), {{65}, {}});
}

TEST_F(HotPoolTest, ASmallerHotSetMovesToTheLowSlots) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 1, 2}, {0, 1, 2}})).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{}, {1, 2}})).ok());
  ASSERT_TRUE(Compact().ok());  // two epochs are alive: nothing moves
  EXPECT_EQ(moves_, 0);
  ASSERT_TRUE(pool_.Retire(1).ok());
  EXPECT_EQ(pool_.extent_bytes(), 6 * kLayout.bundle_bytes);
  const std::shared_ptr<const EpochTables> before = pool_.Find(2);
  ASSERT_TRUE(Compact().ok());
  EXPECT_EQ(moves_, 2);
  EXPECT_EQ(published_, 1);
  ExpectHolds(*pool_.Find(2), {{}, {1, 2}});
  ExpectHolds(*before, {{}, {1, 2}});  // a step may go on with these
  EXPECT_EQ(pool_.extent_bytes(), 6 * kLayout.bundle_bytes);
  EXPECT_EQ(pool_.used_bytes(), 4 * kLayout.bundle_bytes);
}

TEST_F(HotPoolTest, TrimTellsWhatIsNotUsed) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 1, 2}, {0, 1, 2}})).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{}, {1, 2}})).ok());
  ASSERT_TRUE(pool_.Retire(1).ok());
  std::shared_ptr<const EpochTables> step = pool_.Find(2);
  ASSERT_TRUE(Compact().ok());
  int64_t slots = 0;
  const auto trim = [&](int64_t used) { slots = used; };
  EXPECT_FALSE(pool_.Trim(trim));  // the step is not over
  EXPECT_EQ(slots, 6);
  step.reset();
  EXPECT_TRUE(pool_.Trim(trim));
  EXPECT_EQ(slots, 2);
  // What comes next takes the low slots first.
  ASSERT_TRUE(Prepare(Plan(3, {{9}, {1, 2}})).ok());
  EXPECT_EQ(pool_.Find(3)->layers[0].slot_of[9], 2);
  ExpectHolds(*pool_.Find(3), {{9}, {1, 2}});
  // Small holes stay.
  ASSERT_TRUE(pool_.Retire(2).ok());
  ASSERT_TRUE(Compact().ok());
  EXPECT_EQ(moves_, 2);
}

TEST_F(HotPoolTest, ACompactionThatFailsChangesNothing) {
  ASSERT_TRUE(Prepare(Plan(1, {{0, 1, 2}, {0, 1, 2}})).ok());
  ASSERT_TRUE(Prepare(Plan(2, {{}, {1, 2}})).ok());
  ASSERT_TRUE(pool_.Retire(1).ok());
  const std::shared_ptr<const EpochTables> before = pool_.Find(2);
  for (const int fail_at : {1, 2}) {
    fail_move_at_ = moves_ + fail_at;
    EXPECT_FALSE(Compact().ok());
    EXPECT_EQ(pool_.Find(2), before);
    EXPECT_EQ(pool_.used_bytes(), 2 * kLayout.bundle_bytes);
  }
  fail_move_at_ = -1;
  ASSERT_TRUE(Prepare(Plan(3, {{4}, {1, 2}})).ok());
  ExpectHolds(*pool_.Find(3), {{4}, {1, 2}});
  ASSERT_TRUE(pool_.Retire(2).ok());
  ASSERT_TRUE(Compact().ok());
  ExpectHolds(*pool_.Find(3), {{4}, {1, 2}});
}

// Random plans, compactions and steps that hold tables: every table names its own neurons' bytes,
// as long as anybody holds it.
TEST_F(HotPoolTest, HoldsWhatItSaysThroughRandomChanges) {
  pool_.SetOnFreed([&](int32_t slot) {
    std::memset(storage_.data() + slot * kLayout.bundle_bytes, 0xff,
                static_cast<size_t>(kLayout.bundle_bytes));
  });
  std::mt19937 random(4);
  Ids live = {{}, {}};
  int64_t epoch = 0;
  std::vector<std::pair<std::shared_ptr<const EpochTables>, Ids>> steps;
  for (int i = 0; i < 2'000; ++i) {
    Ids next(2);
    for (auto n = static_cast<int64_t>(random() % 7); n > 0; --n) {
      auto& layer = next[random() % 2];
      const auto id = static_cast<int64_t>(random() % 70);
      if (std::find(layer.begin(), layer.end(), id) == layer.end()) layer.push_back(id);
    }
    if (Prepare(Plan(epoch + 1, next)).ok()) {
      if (epoch > 0) {
        ASSERT_TRUE(pool_.Retire(epoch).ok());
      }
      live = next;
      ++epoch;
      fail_move_at_ = random() % 4 == 0 ? moves_ + 1 : -1;
      Compact().IgnoreError();
    }
    if (random() % 3 == 0) steps.emplace_back(pool_.Find(epoch), live);
    if (steps.size() > 2 || (random() % 2 == 0 && !steps.empty())) steps.erase(steps.begin());
    ExpectHolds(*pool_.Find(epoch), live);
    for (const auto& [tables, ids] : steps) ExpectHolds(*tables, ids);
    if (HasFailure()) return;
  }
  EXPECT_GT(epoch, 500);
  EXPECT_GT(moves_, 100);
}

TEST_F(HotPoolTest, PlanAboveTheBudgetIsRefusedWithBytes) {
  const absl::Status status = Prepare(Plan(1, {{0, 1, 2, 3}, {0, 1, 2}}));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("1.34 kB"));
  EXPECT_EQ(pool_.used_bytes(), 0);
  EXPECT_EQ(pool_.Find(1), nullptr);
}

TEST_F(HotPoolTest, FailedCopyKeepsNothing) {
  fail_at_ = 2;
  EXPECT_EQ(Prepare(Plan(1, {{0, 1, 2}, {}})).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(pool_.used_bytes(), 0);
  EXPECT_EQ(pool_.Find(1), nullptr);
  EXPECT_TRUE(Prepare(Plan(1, {{0, 1, 2}, {}})).ok());
  ExpectHolds(*pool_.Find(1), {{0, 1, 2}, {}});
}

TEST_F(HotPoolTest, ABadCopyIsMadeAgainAndGivenUpAfterThreeTimes) {
  ASSERT_TRUE(Prepare(Plan(1, {{5}, {}})).ok());
  // Copies of neuron 1 arrive short `bad` times.
  int bad = 0, copies = 0;
  const auto prepare = [&](int64_t epoch) {
    return pool_.Prepare(
        Plan(epoch, {{0, 1, 5}, {}}),
        [&](int64_t layer, int64_t neuron, int32_t slot) {
          ++copies;
          const auto bytes = static_cast<size_t>(kLayout.bundle_bytes);
          std::byte* const to = storage_.data() + slot * kLayout.bundle_bytes;
          std::memset(to, static_cast<int>(layer * 100 + neuron), bytes);
          if (neuron == 1 && bad-- > 0) std::memset(to + bytes / 2, 0x77, bytes / 2);
          return absl::OkStatus();
        },
        {}, {},
        [&](int64_t layer, int64_t neuron, int32_t slot) {
          const std::byte* const at = storage_.data() + slot * kLayout.bundle_bytes;
          return std::all_of(at, at + kLayout.bundle_bytes, [&](std::byte b) {
            return b == static_cast<std::byte>(layer * 100 + neuron);
          });
        });
  };
  bad = 2;
  ASSERT_TRUE(prepare(2).ok());
  EXPECT_EQ(copies, 4);
  ExpectHolds(*pool_.Find(2), {{0, 1, 5}, {}});
  ASSERT_TRUE(pool_.Retire(2).ok());
  bad = 3;
  EXPECT_EQ(prepare(3).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(pool_.Find(3), nullptr);
  EXPECT_EQ(pool_.used_bytes(), kLayout.bundle_bytes);
  ExpectHolds(*pool_.Find(1), {{5}, {}});  // the old one serves on
}

TEST_F(HotPoolTest, PlansOfAnotherModelAreRefused) {
  PlacementPlan layers = Plan(1, {{0}});
  EXPECT_EQ(Prepare(layers).code(), absl::StatusCode::kFailedPrecondition);
  PlacementPlan neurons = Plan(1, {{0}, {0}});
  neurons.layers[1].num_neurons = 71;
  EXPECT_EQ(Prepare(neurons).code(), absl::StatusCode::kFailedPrecondition);
  PlacementPlan past_end = Plan(1, {{0}, {70}});
  EXPECT_EQ(Prepare(past_end).code(), absl::StatusCode::kFailedPrecondition);
  PlacementPlan count = Plan(1, {{0}, {1}});
  count.layers[0].num_hot = 2;
  EXPECT_EQ(Prepare(count).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pool_.used_bytes(), 0);
}

}  // namespace
}  // namespace isotherm::gpu
