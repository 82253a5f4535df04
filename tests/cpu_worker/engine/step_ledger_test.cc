#include "cpu_worker/engine/step_ledger.h"

#include <gtest/gtest.h>

namespace isotherm::cpu {
namespace {

class FakeClock : public Clock {
 public:
  TimePoint Now() const override { return now; }
  TimePoint now{std::chrono::seconds(100)};
};

class StepLedgerTest : public testing::Test {
 protected:
  FakeClock clock_;
  StepLedger ledger_{clock_};
};

TEST_F(StepLedgerTest, AStepsTotalIsTheSumOfItsLayers) {
  ledger_.AddLayer({7, 1, 0}, ~uint64_t{0}, 5);
  ledger_.AddLayer({7, 1, 0}, 3, 6);
  const StepResult result = ledger_.EndStep({7, 1, 0});
  EXPECT_EQ(result.step_id, 7);
  EXPECT_EQ(result.epoch, 1);
  EXPECT_EQ(result.work_hash, 2u);  // modulo 2^64
  EXPECT_EQ(result.active_neurons, 11);
}

TEST_F(StepLedgerTest, AStepWithoutColdWorkHasTotalZero) {
  EXPECT_EQ(ledger_.EndStep({7, 1, 0}).work_hash, 0u);
}

TEST_F(StepLedgerTest, AnotherAttemptStartsAnew) {
  ledger_.AddLayer({7, 1, 0}, 100, 1);
  ledger_.AddLayer({7, 1, 1}, 3, 1);
  EXPECT_EQ(ledger_.EndStep({7, 1, 1}).work_hash, 3u);
  ledger_.AddLayer({8, 1, 0}, 100, 1);
  ledger_.DropRunning();
  EXPECT_EQ(ledger_.EndStep({8, 1, 0}).work_hash, 0u);
}

TEST_F(StepLedgerTest, AnEpochIsUsedUntilTheLastAnnouncedStepEnded) {
  StepRequest request;
  request.step_id = 10;
  request.epoch = 3;
  request.grant = 1;
  ledger_.Announce(request);
  EXPECT_TRUE(ledger_.Uses(3));
  EXPECT_FALSE(ledger_.Uses(2));
  ledger_.EndStep({10, 3, 0});
  EXPECT_TRUE(ledger_.Uses(3));
  ledger_.EndStep({11, 3, 0});
  EXPECT_FALSE(ledger_.Uses(3));
}

TEST_F(StepLedgerTest, AStepIsUnderWayFromItsFirstLayerToItsEnd) {
  StepRequest request;
  request.step_id = 7;
  request.grant = 100;
  ledger_.Announce(request);
  EXPECT_FALSE(ledger_.InStep());  // announced only
  ledger_.AddLayer({7, 0, 0}, 1, 1);
  EXPECT_TRUE(ledger_.InStep());
  EXPECT_EQ(ledger_.steps_ended(), 0);
  ledger_.EndStep({7, 0, 0});
  EXPECT_FALSE(ledger_.InStep());
  EXPECT_EQ(ledger_.steps_ended(), 1);
  ledger_.AddLayer({8, 0, 0}, 1, 1);
  clock_.now += StepLedger::kIdle;
  EXPECT_FALSE(ledger_.InStep());  // given up by the gpu side
}

TEST_F(StepLedgerTest, ARunningStepUsesItsEpoch) {
  ledger_.AddLayer({7, 4, 0}, 1, 1);
  EXPECT_TRUE(ledger_.Uses(4));
  ledger_.EndStep({7, 4, 0});
  EXPECT_FALSE(ledger_.Uses(4));
}

TEST_F(StepLedgerTest, AGrantThatEndedEarlyIsForgottenAfterItsIdleTime) {
  StepRequest request;
  request.step_id = INT64_MAX - 1;
  request.grant = 100;  // the last id does not fit
  request.epoch = 3;
  ledger_.Announce(request);
  clock_.now += StepLedger::kIdle - std::chrono::milliseconds(1);
  EXPECT_TRUE(ledger_.Uses(3));
  clock_.now += std::chrono::milliseconds(1);
  EXPECT_FALSE(ledger_.Uses(3));
}

TEST_F(StepLedgerTest, ANewerRequestOrAnAbortEndsTheOld) {
  StepRequest request;
  request.epoch = 3;
  ledger_.Announce(request);
  request.epoch = 4;
  ledger_.Announce(request);
  EXPECT_FALSE(ledger_.Uses(3));
  ledger_.AbortAnnounced();
  EXPECT_FALSE(ledger_.Uses(4));
}

}  // namespace
}  // namespace isotherm::cpu
