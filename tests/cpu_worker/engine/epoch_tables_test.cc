#include "cpu_worker/engine/epoch_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

using testing::ElementsAre;

class EpochTablesTest : public testing::Test {
 protected:
  EpochTables tables_{{.num_layers = 3, .num_neurons = 100, .digest = kToyDigest}};
};

TEST_F(EpochTablesTest, TheBuiltInEpochLeavesEveryNeuronToTheCpu) {
  const auto table = tables_.Find(0);
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->cold.size(), 3u);
  EXPECT_EQ(table->cold[2][0], ~uint64_t{0});
  EXPECT_TRUE(absl::IsInvalidArgument(tables_.Retire(0, 1)));
}

TEST_F(EpochTablesTest, AnEpochIsUsableFromCommitToRetire) {
  const PlacementPlan plan = ToyPlan(4, 3, 1);
  auto checksum = tables_.Plan(plan, 1);
  ASSERT_TRUE(checksum.ok()) << checksum.status();
  EXPECT_EQ(*checksum, PlanChecksum(plan));
  EXPECT_EQ(tables_.Find(4), nullptr);
  ASSERT_TRUE(tables_.Commit(4, 1).ok());
  const auto table = tables_.Find(4);
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->cold[0][0], ~plan.layers[0].hot[0]);
  EXPECT_THAT(tables_.Committed(), ElementsAre(0, 4));
  ASSERT_TRUE(tables_.Retire(4, 1).ok());
  EXPECT_EQ(tables_.Find(4), nullptr);
  EXPECT_EQ(table->cold[1][0], ~plan.layers[1].hot[0]);  // a step under way keeps it
}

TEST_F(EpochTablesTest, EveryPhaseMayBeRepeated) {
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(tables_.Plan(ToyPlan(1, 2, 0), 1).ok());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(tables_.Commit(1, 1).ok());
  EXPECT_TRUE(tables_.Plan(ToyPlan(1, 2, 0), 1).ok());
  EXPECT_NE(tables_.Find(1), nullptr);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(tables_.Retire(1, 1).ok());
  EXPECT_TRUE(tables_.Plan(ToyPlan(2, 2, 0), 1).ok());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(tables_.Abort(2, 1).ok());
}

TEST_F(EpochTablesTest, ALowerTermIsFenced) {
  ASSERT_TRUE(tables_.Plan(ToyPlan(1, 2, 0), 5).ok());
  EXPECT_TRUE(absl::IsAborted(tables_.Commit(1, 4)));
  EXPECT_TRUE(absl::IsAborted(tables_.Abort(1, 4)));
  EXPECT_TRUE(absl::IsAborted(tables_.Retire(1, 4)));
  EXPECT_TRUE(absl::IsAborted(tables_.Plan(ToyPlan(2, 2, 0), 4).status()));
  EXPECT_TRUE(tables_.Commit(1, 6).ok());
}

TEST_F(EpochTablesTest, OutOfOrderPhasesAreRefused) {
  EXPECT_TRUE(absl::IsFailedPrecondition(tables_.Commit(9, 1)));
  ASSERT_TRUE(tables_.Plan(ToyPlan(2, 2, 0), 1).ok());
  ASSERT_TRUE(tables_.Commit(2, 1).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(tables_.Abort(2, 1)));
  EXPECT_TRUE(absl::IsFailedPrecondition(tables_.Plan(ToyPlan(2, 3, 0), 1).status()));
  EXPECT_TRUE(absl::IsAborted(tables_.Plan(ToyPlan(1, 2, 0), 1).status()));
}

TEST_F(EpochTablesTest, PlansOfAnotherModelAreRefused) {
  const auto refused = [&](auto change) {
    PlacementPlan plan = ToyPlan(1, 2, 0);
    change(plan);
    return !tables_.Plan(plan, 1).ok();
  };
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.model_digest = "other"; }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.layers.pop_back(); }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.layers[1].num_neurons = 99; }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.layers[1].hot.push_back(0); }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.layers[1].hot[1] |= uint64_t{1} << 63; }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { ++p.layers[1].num_hot; }));
  EXPECT_TRUE(refused([](PlacementPlan& p) { p.epoch = 0; }));
}

TEST_F(EpochTablesTest, KeepsABoundedNumber) {
  int64_t epoch = 1;
  while (tables_.Plan(ToyPlan(epoch, 2, 0), 1).ok()) ++epoch;
  EXPECT_EQ(epoch, static_cast<int64_t>(EpochTables::kMaxEpochs));
  EXPECT_TRUE(absl::IsResourceExhausted(tables_.Plan(ToyPlan(epoch, 2, 0), 1).status()));
}

}  // namespace
}  // namespace isotherm::cpu
