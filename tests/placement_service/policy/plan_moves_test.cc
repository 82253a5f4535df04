#include "placement_service/policy/plan_moves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

namespace isotherm {
namespace {

using testing::HasSubstr;

class PlanMovesTest : public testing::Test {
 protected:
  PlanMovesTest() {
    traffic_.profile = "chat + live";
    traffic_.tokens = 1'000;
    traffic_.frequency = {{0.9f, 0.8f, 0.2f, 0.1f}, {0.7f, 0.6f, 0.5f, 0.0f}};
    traffic_.reads = traffic_.frequency;
    for (std::vector<float>& layer : traffic_.reads) {
      for (float& value : layer) value *= 10;
    }
    traffic_.error = {std::vector<float>(4, 0.01f), std::vector<float>(4, 0.01f)};
    input_ = {.traffic = &traffic_, .layers = {{4, 10}, {4, 10}}, .budget_bytes = 40};
  }
  static LayerPlacement Layer(uint64_t hot) {
    return {.hot = {hot}, .num_neurons = 4, .num_hot = std::popcount(hot)};
  }
  MoveDecision Decide() {
    const absl::StatusOr<MoveDecision> out = PlanMoves(input_, policy_);
    EXPECT_TRUE(out.ok()) << out.status();
    return out.ok() ? *out : MoveDecision();
  }

  TrafficEstimate traffic_;
  MoveInput input_;
  MovePolicy policy_;
};

TEST_F(PlanMovesTest, MovesOnlyWhatDiffers) {
  input_.live = {Layer(0b0111), Layer(0b0001)};
  const MoveDecision decision = Decide();
  ASSERT_TRUE(decision.move);
  EXPECT_EQ(decision.plan.layers[0].hot[0], 0b0011u);
  EXPECT_EQ(decision.plan.layers[1].hot[0], 0b0011u);
  EXPECT_EQ(decision.moved_neurons, 2);
  EXPECT_EQ(decision.in_bytes, 10);
  EXPECT_EQ(decision.out_bytes, 10);
  EXPECT_EQ(decision.plan.used_bytes, 40);
  EXPECT_NEAR(decision.live_hit_share, 2.6 / 3.8, 1e-6);
  EXPECT_NEAR(decision.plan.objective, 3.0 / 3.8, 1e-6);
  EXPECT_NEAR(decision.gain, (12.0 - 8.0) / 12.0, 1e-6);
  EXPECT_THAT(decision.reason, HasSubstr("68.4 % -> 78.9 %"));
  EXPECT_THAT(decision.reason, HasSubstr("chat + live"));
}

TEST_F(PlanMovesTest, ASwapWithinItsNoiseIsNotMade) {
  input_.live = {Layer(0b0111), Layer(0b0001)};
  // The best swap gains 4 of 10 bytes a step; both ends are uncertain by one each.
  traffic_.error = {std::vector<float>(4, 1.1f), std::vector<float>(4, 1.1f)};
  EXPECT_FALSE(Decide().move);
  EXPECT_THAT(Decide().reason, HasSubstr("noise"));
  traffic_.error = {std::vector<float>(4, 0.9f), std::vector<float>(4, 0.9f)};
  EXPECT_TRUE(Decide().move);
}

TEST_F(PlanMovesTest, ACopyMustPayWithinTheHorizon) {
  input_.live = {Layer(0b0111), Layer(0b0001)};
  policy_.horizon_tokens = 4;  // 20 bytes moved for 4 bytes gained a step
  EXPECT_FALSE(Decide().move);
  policy_.horizon_tokens = 6;
  EXPECT_TRUE(Decide().move);
  traffic_.rows_per_step = 2;  // so many tokens are half as many steps
  EXPECT_FALSE(Decide().move);
}

TEST_F(PlanMovesTest, AGainTooSmallForAnEpochIsLeft) {
  input_.live = {Layer(0b0011), Layer(0b0101)};
  policy_.min_gain = 0.2;
  const MoveDecision decision = Decide();
  EXPECT_FALSE(decision.move);
  EXPECT_THAT(decision.reason, HasSubstr("less than 20.00 %"));
  input_.required = true;
  EXPECT_TRUE(Decide().move);
}

TEST_F(PlanMovesTest, TheCapTakesTheBestMovesFirst) {
  input_.live = {Layer(0b1100), Layer(0b1100)};
  input_.max_in_bytes = 25;  // two and a half bundles
  const MoveDecision decision = Decide();
  ASSERT_TRUE(decision.move);
  EXPECT_TRUE(decision.limited);
  EXPECT_EQ(decision.in_bytes, 20);
  EXPECT_EQ(decision.out_bytes, 20);
  // 0.9 and 0.8 come; 0.0 and 0.1 go.
  EXPECT_EQ(decision.plan.layers[0].hot[0], 0b0111u);
  EXPECT_EQ(decision.plan.layers[1].hot[0], 0b0100u);
  input_.max_in_bytes = 5;
  EXPECT_FALSE(Decide().move);
  EXPECT_THAT(Decide().reason, HasSubstr("cap"));
}

TEST_F(PlanMovesTest, ASmallerBudgetTakesTheLeastUsefulOnes) {
  input_.live = {Layer(0b0111), Layer(0b0111)};
  input_.budget_bytes = 30;
  input_.max_in_bytes = 0;  // a departure needs no room
  input_.required = true;
  const MoveDecision decision = Decide();
  ASSERT_TRUE(decision.move);
  EXPECT_EQ(decision.in_bytes, 0);
  EXPECT_EQ(decision.plan.layers[0].hot[0], 0b0011u);
  EXPECT_EQ(decision.plan.layers[1].hot[0], 0b0001u);
}

TEST_F(PlanMovesTest, WithNothingKnownOnlyWhatIsRequiredIsDone) {
  traffic_ = TrafficEstimate{.profile = "even"};
  input_.live = {Layer(0b1000), Layer(0)};
  EXPECT_FALSE(Decide().move);
  EXPECT_THAT(Decide().reason, HasSubstr("nothing is known"));
  input_.required = true;
  const MoveDecision decision = Decide();
  ASSERT_TRUE(decision.move);
  EXPECT_EQ(decision.plan.solver, "even");
  EXPECT_EQ(decision.plan.layers[0].hot[0], 0b0011u);
}

TEST_F(PlanMovesTest, MeasuredTimesDecideWhenTheyAreToBeUsed) {
  // The hot side is so slow that one neuron a layer is all it should have.
  traffic_.timed = true;
  traffic_.costs = {.cold_per_byte = 1, .hot_per_byte = 3};
  EXPECT_EQ(Decide().plan.used_bytes, 40);
  input_.use_times = true;
  EXPECT_LT(Decide().plan.used_bytes, 40);
}

TEST_F(PlanMovesTest, BadNumbersAreRefused) {
  traffic_.reads[1][2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(PlanMoves(input_, policy_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace isotherm
