#include "gpu_worker/engine/hot_pool_budget.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_pool_memory.h"
#include "tests/gpu_worker/engine/small_bundles.h"

namespace isotherm::gpu {
namespace {

using testing::HasSubstr;

class HotPoolBudgetTest : public testing::Test {
 protected:
  static constexpr BundleLayout kLayout = kSmallBundles;
  static constexpr int64_t kAll = kLayout.num_neurons * kLayout.num_layers;
  static constexpr int64_t kSlots = 100, kCapacity = 99;
  static constexpr int64_t kStep = 256, kChunk = 1024;  // bundles lie across both
  static constexpr int64_t kFull = kSlots * kLayout.bundle_bytes;
  static constexpr size_t kBundle = static_cast<size_t>(kLayout.bundle_bytes);

  // Neurons `first` .. of the model, layer by layer.
  static PlacementPlan Plan(int64_t epoch, int64_t first, int64_t count, int64_t budget_slots) {
    PlacementPlan plan{.epoch = epoch, .budget_bytes = budget_slots * kLayout.bundle_bytes};
    for (int64_t l = 0; l < kLayout.num_layers; ++l) {
      LayerPlacement layer{.num_neurons = kLayout.num_neurons};
      layer.hot.assign(2, 0);
      for (int64_t n = 0; n < kLayout.num_neurons; ++n) {
        const int64_t at = l * kLayout.num_neurons + n;
        if (at < first || at >= first + count) continue;
        layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << n % 64;
        ++layer.num_hot;
      }
      plan.layers.push_back(layer);
    }
    return plan;
  }

  HotPoolBudgetTest() {
    EXPECT_TRUE(memory_.Resize(kFull).ok());
    budget_ = std::make_unique<HotPoolBudget>(pool_, memory_, gate_, kLayout.bundle_bytes);
  }

  std::byte* Slot(int32_t slot) { return memory_.data() + slot * kLayout.bundle_bytes; }
  static std::byte ContentOf(int64_t layer, int64_t neuron) {
    return static_cast<std::byte>(layer * 100 + neuron);
  }
  void ExpectThere(int32_t slot) {
    EXPECT_GE(slot, 0);
    EXPECT_LE((slot + 1) * kLayout.bundle_bytes, budget_->memory_bytes());
  }
  absl::Status Prepare(const PlacementPlan& plan) {
    return budget_->Prepare(plan,
                            [this](int64_t layer, int64_t neuron, int32_t slot) {
                              ExpectThere(slot);
                              std::memset(Slot(slot), static_cast<int>(ContentOf(layer, neuron)),
                                          kBundle);
                              return absl::OkStatus();
                            },
                            {});
  }
  absl::Status Retire(int64_t epoch) {
    return budget_->Retire(epoch, [this](int32_t from, int32_t to) -> absl::Status {
      if (fail_moves_) return absl::DataLossError("no copy");
      ExpectThere(from);
      ExpectThere(to);
      std::memcpy(Slot(to), Slot(from), kBundle);
      return absl::OkStatus();
    });
  }
  void Replace(int64_t old_epoch, const PlacementPlan& plan) {
    const absl::Status prepared = Prepare(plan);
    ASSERT_TRUE(prepared.ok()) << prepared;
    const absl::Status retired = Retire(old_epoch);
    ASSERT_TRUE(retired.ok()) << retired;
  }
  // Every hot neuron of the tables is where they say, whole. How many there are.
  int64_t ExpectHolds(const EpochTables& tables) {
    int64_t count = 0;
    for (size_t l = 0; l < tables.layers.size(); ++l) {
      for (size_t n = 0; n < tables.layers[l].slot_of.size(); ++n) {
        const int32_t slot = tables.layers[l].slot_of[n];
        if (slot < 0) continue;
        ++count;
        const std::byte want = ContentOf(static_cast<int64_t>(l), static_cast<int64_t>(n));
        const std::byte* const at = Slot(slot);
        EXPECT_TRUE(std::all_of(at, at + kBundle, [&](std::byte b) { return b == want; }))
            << "layer " << l << ", neuron " << n << ", slot " << slot;
      }
    }
    return count;
  }
  int64_t ExpectHolds(int64_t epoch) {
    const std::shared_ptr<const EpochTables> tables = pool_.Find(epoch);
    EXPECT_NE(tables, nullptr);
    return tables == nullptr ? -1 : ExpectHolds(*tables);
  }
  static int64_t MostBytesOf(int64_t slots) { return slots * kLayout.bundle_bytes + kChunk; }

  HotPool pool_{kLayout, HotPoolBudget::Capacity(kSlots, kAll), kSlots};
  FakePoolMemory memory_{kFull, kStep, kChunk};
  StepGate gate_;
  std::unique_ptr<HotPoolBudget> budget_;
  bool fail_moves_ = false;
};

TEST_F(HotPoolBudgetTest, CapacityLeavesRoomToMoveUnlessAllIsHot) {
  EXPECT_EQ(pool_.capacity_slots(), kCapacity);
  EXPECT_EQ(HotPoolBudget::Capacity(1000, 10'000), 985);
  EXPECT_EQ(HotPoolBudget::Capacity(10'000, 10'000), 10'000);
}

TEST_F(HotPoolBudgetTest, ASmallerBudgetGivesMemoryBackAndALargerOneTakesItAgain) {
  const std::byte* const address = memory_.data();
  ASSERT_TRUE(Prepare(Plan(1, 0, kCapacity, kCapacity)).ok());
  EXPECT_EQ(budget_->memory_bytes(), kFull);
  // Those that stay lie at the end.
  ASSERT_TRUE(Prepare(Plan(2, 69, 30, 30)).ok());
  EXPECT_EQ(budget_->memory_bytes(), kFull);  // the old epoch still has all of it
  ASSERT_TRUE(Retire(1).ok());
  EXPECT_EQ(ExpectHolds(2), 30);
  EXPECT_GE(budget_->memory_bytes(), 31 * kLayout.bundle_bytes);
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(31));
  EXPECT_EQ(memory_.bytes(), budget_->memory_bytes());
  EXPECT_EQ(pool_.capacity_slots(), kCapacity);  // may come back
  EXPECT_GE(pool_.spare_bytes(), kLayout.bundle_bytes);
  EXPECT_LT(pool_.spare_bytes(), MostBytesOf(1));
  Replace(2, Plan(3, 0, kCapacity, kCapacity));
  EXPECT_EQ(budget_->memory_bytes(), kFull);
  EXPECT_EQ(ExpectHolds(3), kCapacity);
  Replace(3, Plan(4, 0, 0, 0));
  EXPECT_EQ(budget_->memory_bytes(), 0);
  EXPECT_EQ(pool_.spare_bytes(), 0);
  Replace(4, Plan(5, 3, 17, 20));
  EXPECT_EQ(ExpectHolds(5), 17);
  EXPECT_EQ(memory_.data(), address);
}

TEST_F(HotPoolBudgetTest, AFewPerCentLessAreGivenBackToo) {
  ASSERT_TRUE(Prepare(Plan(1, 0, kCapacity, kCapacity)).ok());
  Replace(1, Plan(2, 9, 90, 90));
  EXPECT_EQ(ExpectHolds(2), 90);
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(92));
  EXPECT_LT(budget_->memory_bytes(), kFull);
}

TEST_F(HotPoolBudgetTest, WhatTheBudgetAllowsStaysAndTheFirstPlanCounts) {
  ASSERT_TRUE(Prepare(Plan(1, 0, 10, 50)).ok());  // after a restart, say: nothing is retired
  EXPECT_GE(budget_->memory_bytes(), 51 * kLayout.bundle_bytes);
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(51));
  EXPECT_EQ(ExpectHolds(1), 10);
  // A plan that names no budget may take all.
  Replace(1, Plan(2, 0, 10, 0));
  EXPECT_EQ(budget_->memory_bytes(), kFull);
  // None at all: as at the start.
  ASSERT_TRUE(Prepare(Plan(3, 0, 10, 10)).ok());
  ASSERT_TRUE(Retire(2).ok());
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(11));
  ASSERT_TRUE(Retire(3).ok());
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(11));        // it is taken when somebody needs it
  ASSERT_TRUE(Prepare(Plan(4, 0, kCapacity, 1 << 20)).ok());  // more than there is: all of it
  EXPECT_EQ(budget_->memory_bytes(), kFull);
}

TEST_F(HotPoolBudgetTest, MovesUnderOneBudgetTouchNoMemory) {
  ASSERT_TRUE(Prepare(Plan(1, 0, 40, 40)).ok());
  const int resizes = memory_.resizes();
  for (int64_t epoch = 2; epoch < 30; ++epoch) {
    Replace(epoch - 1, Plan(epoch, epoch, 40, 40));
    EXPECT_EQ(ExpectHolds(epoch), 40);
  }
  EXPECT_EQ(memory_.resizes(), resizes);
}

TEST_F(HotPoolBudgetTest, GrowthThatCannotBeHadLeavesAllAsItWas) {
  ASSERT_TRUE(Prepare(Plan(1, 0, 20, 20)).ok());
  const int64_t before = budget_->memory_bytes();
  memory_.HoldByOthers(kFull - before - 2 * kChunk);
  const absl::Status refused = Prepare(Plan(2, 0, 90, 90));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the hot pool needs 13"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr(", 2.05 kB are free"));
  EXPECT_EQ(budget_->memory_bytes(), before);
  EXPECT_EQ(memory_.bytes(), before);
  EXPECT_EQ(pool_.Find(2), nullptr);
  EXPECT_EQ(ExpectHolds(1), 20);
  // What is there goes on being used, and moves go on.
  Replace(1, Plan(3, 1, 20, 20));
  EXPECT_EQ(ExpectHolds(3), 20);
  memory_.HoldByOthers(0);
  Replace(3, Plan(4, 0, 90, 90));
  EXPECT_EQ(ExpectHolds(4), 90);
}

TEST_F(HotPoolBudgetTest, APlanThatIsAbandonedGivesItsMemoryBack) {
  ASSERT_TRUE(Prepare(Plan(1, 0, 20, 20)).ok());
  const int64_t before = budget_->memory_bytes();
  ASSERT_TRUE(Prepare(Plan(2, 0, 90, 90)).ok());
  EXPECT_GT(budget_->memory_bytes(), before);
  ASSERT_TRUE(Retire(2).ok());
  EXPECT_EQ(budget_->memory_bytes(), before);
  EXPECT_EQ(ExpectHolds(1), 20);
  // The same when its copies fail.
  const absl::Status failed = budget_->Prepare(
      Plan(3, 0, 90, 90), [](int64_t, int64_t, int32_t) { return absl::DataLossError("bad file"); },
      {});
  EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(budget_->memory_bytes(), before);
}

TEST_F(HotPoolBudgetTest, WhatCannotBeGivenBackNowGoesLater) {
  ASSERT_TRUE(Prepare(Plan(1, 0, kCapacity, kCapacity)).ok());
  ASSERT_TRUE(Prepare(Plan(2, 69, 30, 30)).ok());
  fail_moves_ = true;
  EXPECT_EQ(Retire(1).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ExpectHolds(2), 30);
  EXPECT_EQ(budget_->memory_bytes(), kFull);
  fail_moves_ = false;
  memory_.Break(true);
  ASSERT_TRUE(Prepare(Plan(3, 70, 30, 30)).ok());
  EXPECT_EQ(Retire(2).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ExpectHolds(3), 30);
  memory_.Break(false);
  Replace(3, Plan(4, 71, 30, 30));
  EXPECT_EQ(ExpectHolds(4), 30);
  EXPECT_LT(budget_->memory_bytes(), MostBytesOf(31));
}

// Steps one after the other, as an engine runs them, while budgets and plans change: what a step
// reads is there until it ends, and memory changes between steps only.
TEST_F(HotPoolBudgetTest, StepsReadWholeNeuronsWhileBudgetsChange) {
  ASSERT_TRUE(Prepare(Plan(1, 0, 50, 50)).ok());
  std::atomic<int64_t> live = 1;
  std::atomic<bool> stop = false;
  int64_t steps = 0;
  std::thread stepper([&] {
    while (!stop) {
      const StepGate::Step step(gate_);
      const std::shared_ptr<const EpochTables> tables = pool_.Find(live);
      if (tables == nullptr) continue;  // retired since
      const int64_t bytes = memory_.bytes();
      ExpectHolds(*tables);
      EXPECT_EQ(memory_.bytes(), bytes);
      ++steps;
    }
  });
  std::mt19937 random(3);
  int64_t least = kFull, most = 0;
  for (int64_t epoch = 2; epoch < 3'000 && !HasFailure(); ++epoch) {
    const auto budget = static_cast<int64_t>(random() % (kCapacity + 1));
    const auto count = static_cast<int64_t>(random() % static_cast<uint64_t>(budget + 1));
    const auto first = static_cast<int64_t>(random() % static_cast<uint64_t>(kAll - count + 1));
    const absl::Status prepared = Prepare(Plan(epoch, first, count, budget));
    if (!prepared.ok()) {  // both do not fit together
      EXPECT_EQ(prepared.code(), absl::StatusCode::kResourceExhausted);
      continue;
    }
    const int64_t old = live.exchange(epoch);
    const absl::Status retired = Retire(old);
    EXPECT_TRUE(retired.ok()) << retired;
    // Whatever step was under way: what the budget does not ask for is gone.
    EXPECT_LT(budget_->memory_bytes(), MostBytesOf(budget + budget / 50 + 2));
    least = std::min(least, budget_->memory_bytes());
    most = std::max(most, budget_->memory_bytes());
  }
  stop = true;
  stepper.join();
  EXPECT_GT(steps, 0);
  EXPECT_LT(least, kFull / 8);
  EXPECT_EQ(most, kFull);
}

}  // namespace
}  // namespace isotherm::gpu
