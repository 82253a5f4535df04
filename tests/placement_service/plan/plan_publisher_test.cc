#include <sqlite3.h>

#include <filesystem>

#include "common/base/exit_code.h"
#include "tests/fakes/faulty_vfs.h"
#include "tests/placement_service/plan/publisher_fixture.h"

namespace isotherm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(PlanPublisherTest, FirstPlanFillsTheHotPoolByFrequencyOnBothWorkers) {
  Start();
  EXPECT_EQ(Live().epoch, 0);
  Round();
  EXPECT_EQ(publisher_->blocked_by(), "");
  const PlacementPlan live = Live();
  EXPECT_EQ(live.epoch, 1);
  EXPECT_EQ(live.budget_bytes, 400);
  EXPECT_EQ(live.used_bytes, 400);
  EXPECT_EQ(live.profile, "chat");
  EXPECT_THAT(gpu_.CommittedEpochs(), ElementsAre(0, 1));
  EXPECT_THAT(cpu_.CommittedEpochs(), ElementsAre(0, 1));
  EXPECT_EQ(PlanChecksum(cpu_.PlanOf(1)), PlanChecksum(live));
}

TEST_F(PlanPublisherTest, RestartKeepsTheLivePlanAndTakesAHigherTerm) {
  Start();
  Round();
  const int64_t term = gpu_.term();
  Start();
  EXPECT_EQ(Live().epoch, 1);
  Round();
  EXPECT_EQ(*store_->NewestEpoch(), 1);
  gpu_.Restart();
  Round();
  EXPECT_GT(gpu_.term(), term);
}

TEST_F(PlanPublisherTest, GivesTheLivePlanToAWorkerThatRestarted) {
  Start();
  Round();
  for (FakePrepareWorker* worker : {&gpu_, &cpu_}) {
    worker->Restart();
    Round();
    EXPECT_THAT(worker->CommittedEpochs(), ElementsAre(0, 1));
  }
  EXPECT_EQ(*store_->NewestEpoch(), 1);
}

TEST_F(PlanPublisherTest, WaitsForAWorkerThatIsAwayOrLoads) {
  cpu_.SetAway(true);
  gpu_.SetLoadProgress(0.5);
  Start();
  Round();
  EXPECT_THAT(publisher_->blocked_by(), HasSubstr("gpu_worker"));
  EXPECT_EQ(SetBudget({.bytes = 10}).status().code(), absl::StatusCode::kUnavailable);
  gpu_.SetLoadProgress(1);
  Round();
  EXPECT_THAT(publisher_->blocked_by(), HasSubstr("cpu_worker"));
  clock_.Advance(std::chrono::hours(1));  // the first plan waits without end
  Round();
  EXPECT_EQ(Live().epoch, 0);
  EXPECT_EQ(Live().layers.size(), 2u);
  cpu_.SetAway(false);
  Round();
  EXPECT_EQ(Live().epoch, 1);
}

TEST_F(PlanPublisherTest, BudgetIsClippedRecordedAndRetiresTheOldEpoch) {
  Start();
  Round();
  const auto small = SetBudget({.request_id = "a", .bytes = 155});
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->plan.epoch, 2);
  EXPECT_EQ(small->plan.budget_bytes, 155);
  EXPECT_EQ(small->plan.used_bytes, 150);
  EXPECT_EQ(small->plan.cause, PlacementCause::kBudget);
  EXPECT_EQ(small->moved_neurons, 25);
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 2));
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, 2));
  const auto large = SetBudget({.request_id = "b", .bytes = 1'000'000});
  EXPECT_EQ(large->requested_bytes, 1'000'000);
  EXPECT_EQ(large->plan.budget_bytes, 400);
  EXPECT_EQ(SetBudget({.bytes = -1}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SetBudget({.bytes = 0})->plan.used_bytes, 0);
  Start();  // an operator's budget outlives a restart under the same flags
  Round();
  EXPECT_EQ(Live().budget_bytes, 0);
  options_.start_options = "other flags";
  Start();
  Round();
  EXPECT_EQ(Live().budget_bytes, 400);
}

TEST_F(PlanPublisherTest, RollbackPublishesOldContentsAsANewEpoch) {
  Start();
  Round();
  const PlacementPlan first = Live();
  ASSERT_TRUE(SetBudget({.bytes = 100}).ok());
  EXPECT_EQ(Reason(Rollback({.to_epoch = 1, .if_etag = first.etag}).status()), "ETAG_MISMATCH");
  const auto back = Rollback({.request_id = "r", .to_epoch = 1, .if_etag = Live().etag});
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->plan.epoch, 3);
  EXPECT_EQ(back->plan.from_epoch, 1);
  EXPECT_EQ(back->plan.cause, PlacementCause::kRollback);
  EXPECT_EQ(back->plan.etag, first.etag);
  EXPECT_EQ(PlanChecksum(gpu_.PlanOf(3)), PlanChecksum(first));
  EXPECT_EQ(Rollback({.to_epoch = 9}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Rollback({.to_epoch = 0}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlanPublisherTest, SameRequestIdGetsTheSameAnswerAcrossARestart) {
  Start();
  Round();
  const auto first = SetBudget({.request_id = "a", .bytes = 100});
  EXPECT_EQ(SetBudget({.request_id = "a", .bytes = 100})->plan.epoch, first->plan.epoch);
  EXPECT_EQ(SetBudget({.request_id = "a", .bytes = 90}).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(SetBudget({.request_id = "b", .bytes = 50}).ok());
  Start();
  const auto again = SetBudget({.request_id = "a", .bytes = 100});
  EXPECT_EQ(again->plan.epoch, first->plan.epoch);
  EXPECT_EQ(again->state, PlanState::kRetired);
  EXPECT_EQ(*store_->NewestEpoch(), 3);
}

TEST_F(PlanPublisherTest, RefusedPlanFailsAndTheOldOneStays) {
  Start();
  Round();
  gpu_.SetHook([](PreparePhase phase, int64_t, bool before) {
    return phase == PreparePhase::kPlan && before ? absl::ResourceExhaustedError("no room")
                                                  : absl::OkStatus();
  });
  const auto refused = SetBudget({.request_id = "a", .bytes = 100});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Live().epoch, 1);
  EXPECT_EQ(store_->Get(2, false)->state, PlanState::kFailed);
  gpu_.SetHook(nullptr);
  const auto again = SetBudget({.request_id = "a", .bytes = 100});
  EXPECT_EQ(again.status().code(), absl::StatusCode::kResourceExhausted);  // the same answer
  EXPECT_EQ(again.status().message(), refused.status().message());
  Round();
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1));
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, 1));
  EXPECT_EQ(SetBudget({.bytes = 100})->plan.epoch, 3);
}

TEST_F(PlanPublisherTest, RefusedCommitLeavesTheOldPlanEverywhere) {
  Start();
  Round();
  cpu_.SetHook([](PreparePhase phase, int64_t, bool before) {
    return phase == PreparePhase::kCommit && before ? absl::InternalError("broken")
                                                    : absl::OkStatus();
  });
  EXPECT_FALSE(SetBudget({.bytes = 100}).ok());
  cpu_.SetHook(nullptr);
  Round();
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1));
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, 1));
}

TEST_F(PlanPublisherTest, BadCopyIsSentAgainAndGivenUpAfterThreeTimes) {
  gpu_.CorruptChecksums(2);
  Start();
  Round();
  EXPECT_EQ(Live().epoch, 1);
  gpu_.CorruptChecksums(3);
  EXPECT_EQ(SetBudget({.bytes = 100}).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Live().epoch, 1);
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1));
}

TEST_F(PlanPublisherTest, ChangeThatStallsFailsAndALaterOneIsRefusedUntilThen) {
  Start();
  Round();
  cpu_.SetAway(true);
  absl::StatusOr<PlanRecord> slow = absl::UnknownError("not answered");
  publisher_->SetBudget({.bytes = 100}, [&](const auto& result) { slow = result; });
  Round();
  EXPECT_EQ(slow.status().code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(Reason(SetBudget({.bytes = 90}).status()), "RECOMPUTE_RUNNING");
  clock_.Advance(std::chrono::seconds(61));
  Round();
  EXPECT_EQ(slow.status().code(), absl::StatusCode::kUnavailable);
  cpu_.SetAway(false);
  Round();
  EXPECT_EQ(Live().epoch, 1);
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, 1));
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1));
}

TEST_F(PlanPublisherTest, OldWeightsStayWhileAStepNamesThem) {
  Start();
  Round();
  gpu_.Pin(1, true);
  ASSERT_TRUE(SetBudget({.bytes = 100}).ok());
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1, 2));
  // A third epoch waits for the first to be free.
  absl::StatusOr<PlanRecord> third = absl::UnknownError("not answered");
  publisher_->SetBudget({.bytes = 50}, [&](const auto& result) { third = result; });
  Round();
  EXPECT_EQ(third.status().code(), absl::StatusCode::kUnknown);
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 1, 2));
  gpu_.Pin(1, false);
  Round();
  EXPECT_TRUE(third.ok()) << third.status();
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 3));
}

TEST_F(PlanPublisherTest, TheOneWithTheLowerTermStopsWhenASecondTakesOver) {
  Start();
  Round();
  clock_.SetWall(2'000'000);  // started later, with a store of its own
  auto other_store = PlanStore::Open({directory_ + "/other.sqlite", ""});
  ASSERT_TRUE(other_store.ok());
  TrafficModel other_traffic(TrafficOptions(), clock_);
  auto other =
      PlanPublisher::Create(options_, **other_store, gpu_, &cpu_, profile_, other_traffic, clock_);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE((*other)->RunOnce().ok());
  EXPECT_EQ((*other)->Get(0, false)->plan.epoch, 2);  // epochs do not go back
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 2));
  Round();
  EXPECT_THAT(publisher_->blocked_by(), HasSubstr("took over"));
  EXPECT_EQ(SetBudget({.bytes = 50}).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE((*other)->RunOnce().ok());
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, 2));
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, 2));
}

TEST_F(PlanPublisherTest, FollowsAGpuWorkerWhosePoolChanged) {
  Start();
  Round();
  gpu_.Restart({.name = "gpu_worker", .capacity_bytes = 200});
  Round();
  Round();
  EXPECT_EQ(Live().used_bytes, 200);
  gpu_.Restart({.name = "gpu_worker", .capacity_bytes = 600});
  Round();
  Round();
  EXPECT_EQ(Live().used_bytes, 600);
  EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, Live().epoch));
}

TEST_F(PlanPublisherTest, FollowsACapacityThatChangesWhileItServes) {
  Start();
  Round();
  ASSERT_EQ(Live().used_bytes, 400);
  gpu_.SetCapacity(250);  // KV pages were lent
  Round();
  EXPECT_EQ(Live().used_bytes, 250);
  EXPECT_EQ(Live().cause, PlacementCause::kBudget);
  gpu_.SetCapacity(400);
  Round();
  EXPECT_EQ(Live().used_bytes, 400);
  // Up to what was asked for, and no further.
  ASSERT_TRUE(SetBudget({.bytes = 300}).ok());
  gpu_.SetCapacity(200);
  Round();
  EXPECT_EQ(Live().used_bytes, 200);
  gpu_.SetCapacity(400);
  Round();
  EXPECT_EQ(Live().used_bytes, 300);
  // A pinned plan gives way and does not grow.
  absl::StatusOr<PlanRecord> pinned = absl::UnknownError("not answered");
  publisher_->SetPin({.pinned = true}, [&](const auto& result) { pinned = result; });
  Round();
  ASSERT_TRUE(pinned.ok());
  gpu_.SetCapacity(100);
  Round();
  EXPECT_EQ(Live().used_bytes, 100);
  gpu_.SetCapacity(400);
  Round();
  EXPECT_EQ(Live().used_bytes, 100);
}

TEST_F(PlanPublisherTest, ClocksThatJumpChangeNothing) {
  constexpr int64_t kYearUs = int64_t{365} * 24 * 3'600 * 1'000'000;
  clock_.SetWall(50 * kYearUs);
  Start();
  Round();
  const int64_t term = gpu_.term();
  // A year back and forth while it runs: nothing times out, nothing is planned.
  for (const int64_t wall : {49 * kYearUs, 51 * kYearUs}) {
    clock_.SetWall(wall);
    Round();
    EXPECT_EQ(Live().epoch, 1);
    EXPECT_EQ(publisher_->blocked_by(), "");
  }
  clock_.SetWall(49 * kYearUs);
  ASSERT_TRUE(SetBudget({.bytes = 200}).ok());
  EXPECT_EQ(Live().created_unix_ms, 49 * kYearUs / 1'000);
  // A restart with the clock a year back still comes after the process before.
  Start();
  gpu_.Restart();
  Round();
  EXPECT_EQ(Live().epoch, 2);
  EXPECT_GT(gpu_.term(), term);
  ASSERT_TRUE(SetBudget({.bytes = 100}).ok());
  EXPECT_EQ(Live().epoch, 3);
  // History is in the order of epochs, whatever the clock said.
  clock_.SetWall(48 * kYearUs);
  ASSERT_TRUE(SetBudget({.bytes = 150}).ok());
  const auto history = publisher_->History(100, 10);
  ASSERT_TRUE(history.ok());
  ASSERT_EQ(history->size(), 4u);
  EXPECT_EQ((*history)[0].plan.epoch, 4);
  EXPECT_LT((*history)[0].plan.created_unix_ms, (*history)[1].plan.created_unix_ms);
  // The process is stopped for half a minute: workers are there, a change under way goes on.
  clock_.Advance(std::chrono::seconds(30));
  Round();
  EXPECT_EQ(publisher_->blocked_by(), "");
  EXPECT_EQ(Live().epoch, 4);
}

TEST_F(PlanPublisherTest, PlansAnewForAnotherModelAndKeepsStillWhileWorkersDiffer) {
  Start();
  Round();
  gpu_.Restart({.name = "gpu_worker", .model_digest = "other"});
  Round();
  EXPECT_THAT(publisher_->blocked_by(), HasSubstr("different models"));
  EXPECT_EQ(*store_->NewestEpoch(), 1);
  cpu_.Restart({.name = "cpu_worker", .model_digest = "other"});
  Round();
  EXPECT_EQ(Live().epoch, 2);
  EXPECT_EQ(Live().model_digest, "other");
  EXPECT_EQ(Rollback({.to_epoch = 1}).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PlanPublisherTest, AnotherModelsProfileEndsTheServiceWith65) {
  profile_.frequency.pop_back();
  Start();
  EXPECT_EQ(ExitCodeOf(publisher_->RunOnce()), ExitCode::kBadData);
}

TEST_F(PlanPublisherTest, WatchersGetASnapshotThenEveryChange) {
  Start();
  std::vector<PlanEvent> events;
  const auto take = [&](PlanEvent event) {
    if (event.kind == PlanEvent::Kind::kPlan) events.push_back(std::move(event));
  };
  const auto subscription = publisher_->feed().Subscribe(take);
  const auto drain = [&] {
    while (auto event = subscription->Take()) take(*std::move(event));
  };
  drain();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].plan.epoch, 0);
  Round();
  drain();
  ASSERT_TRUE(SetBudget({.bytes = 100}).ok());
  drain();
  std::vector<std::pair<int64_t, PlanState>> seen;
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_GT(events[i].sequence, events[i - 1].sequence);
    EXPECT_TRUE(events[i].plan.layers.empty() || events[i].plan.layers[0].hot.empty());
    seen.push_back({events[i].plan.epoch, events[i].state});
  }
  using P = std::pair<int64_t, PlanState>;
  EXPECT_THAT(seen, ElementsAre(P{1, PlanState::kPreparing}, P{1, PlanState::kLive},
                                P{2, PlanState::kPreparing}, P{2, PlanState::kLive},
                                P{1, PlanState::kRetired}));
  publisher_->feed().Unsubscribe(subscription);
}

TEST_F(PlanPublisherTest, WatcherThatTakesNothingIsCutOff) {
  Start();
  const auto subscription = publisher_->feed().Subscribe([](PlanEvent) { FAIL(); });
  for (size_t i = 0; i <= PlanFeed::kMaxQueued; ++i) {
    publisher_->feed().Publish(PlacementPlan(), PlanState::kFailed, "");
  }
  EXPECT_TRUE(subscription->overflowed());
  EXPECT_FALSE(subscription->Take().has_value());
  publisher_->feed().Unsubscribe(subscription);
}

TEST_F(PlanPublisherTest, FullDiskKeepsTheOldPlanAndSaysSo) {
  FaultyVfs vfs;
  Start(vfs.name());
  Round();
  vfs.FailAfter(0, SQLITE_FULL);
  EXPECT_EQ(SetBudget({.bytes = 100}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Live().epoch, 1);
  vfs.Heal();
  EXPECT_EQ(SetBudget({.bytes = 100})->plan.epoch, 2);
  publisher_.reset();
  store_.reset();
  // A start with a full disk serves and restores what there is.
  gpu_.Restart();
  auto store = PlanStore::Open({directory_ + "/plans.sqlite", vfs.name()});
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  vfs.FailAfter(0, SQLITE_FULL);
  auto publisher =
      PlanPublisher::Create(options_, *store_, gpu_, &cpu_, profile_, *traffic_, clock_);
  ASSERT_TRUE(publisher.ok()) << publisher.status();
  publisher_ = *std::move(publisher);
  Round();
  EXPECT_THAT(gpu_.CommittedEpochs(), ElementsAre(0, 2));
  publisher_.reset();
  store_.reset();
}

// The process dies at the n-th moment of a change, for all n: before or after each phase on each
// worker takes effect, and at each write and sync of the store. After the restart the workers and
// the store agree on all-old or all-new, and what was announced or acknowledged before is kept.
TEST_F(PlanPublisherTest, DeathAtAnyMomentLeavesAllOldOrAllNew) {
  FaultyVfs vfs;
  int outcomes[2] = {0, 0};
  bool died = true;
  bool in_store = false;
  for (int n = 0; n < 300; ++n) {
    if (!died) {  // past the last moment of this kind
      EXPECT_GT(n, 5);
      if (in_store) break;
      in_store = true;
      n = 0;
    }
    publisher_.reset();
    store_.reset();
    vfs.Heal();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directory(directory_);
    gpu_.SetHook(nullptr);
    cpu_.SetHook(nullptr);
    gpu_.Restart();
    cpu_.Restart();
    Start(vfs.name());
    Round();
    ASSERT_EQ(Live().epoch, 1);

    int left = in_store ? -1 : n;
    died = false;
    const auto moment = [&](PreparePhase, int64_t, bool) {
      if (vfs.fired()) died = true;
      if (!died && left-- == 0) {
        died = true;
        vfs.FailAfter(0, SQLITE_IOERR_WRITE);
      }
      return died ? absl::UnavailableError("dead") : absl::OkStatus();
    };
    gpu_.SetHook(moment);
    cpu_.SetHook(moment);
    if (in_store) vfs.FailAfter(n, SQLITE_IOERR_WRITE);
    bool announced = false;
    const auto subscription = publisher_->feed().Subscribe([](PlanEvent) {});
    const bool acknowledged = SetBudget({.request_id = "id", .bytes = 100}).ok();
    while (auto event = subscription->Take()) {
      announced |= event->state == PlanState::kLive && event->plan.epoch == 2;
    }
    died |= vfs.fired();
    publisher_->feed().Unsubscribe(subscription);
    EXPECT_EQ(acknowledged, announced) << n;

    vfs.Heal();
    gpu_.SetHook(nullptr);
    cpu_.SetHook(nullptr);
    Start();
    Round();
    Round();
    const int64_t live = Live().epoch;
    EXPECT_TRUE(live == 1 || live == 2) << n;
    EXPECT_TRUE(!announced || live == 2) << n;
    EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, live)) << n;
    EXPECT_THAT(cpu_.Epochs(), ElementsAre(0, live)) << n;
    EXPECT_THAT(gpu_.CommittedEpochs(), ElementsAre(0, live)) << n;
    EXPECT_FALSE(store_->Preparing()->has_value()) << n;
    EXPECT_EQ(PlanChecksum(gpu_.PlanOf(live)), PlanChecksum(Live())) << n;
    ++outcomes[live - 1];
    // The operator asks again with the same id: done once, whatever happened.
    const auto again = SetBudget({.request_id = "id", .bytes = 100});
    ASSERT_TRUE(again.ok()) << n << again.status();
    EXPECT_EQ(again->plan.epoch, 2) << n;
    EXPECT_EQ(*store_->NewestEpoch(), 2) << n;
  }
  EXPECT_FALSE(died);
  EXPECT_GT(outcomes[0], 0);
  EXPECT_GT(outcomes[1], 0);
}

}  // namespace
}  // namespace isotherm
