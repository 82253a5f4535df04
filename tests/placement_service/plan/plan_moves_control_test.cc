// Recomputations, pins, imports, moves with the traffic and goals reached in steps.
#include <sqlite3.h>

#include <filesystem>

#include "placement_service/plan/plan_codec.h"
#include "tests/fakes/faulty_vfs.h"
#include "tests/placement_service/plan/publisher_fixture.h"

namespace isotherm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PlanMovesControlTest : public PlanPublisherTest {
 protected:
  PlanMovesControlTest() {
    options_.mover.min_interval = milliseconds(0);
    options_.mover.moves_per_second = 0.25;
  }

  // A second of traffic in which the neurons from `first` on fire, 20 of each layer, often.
  void Traffic(size_t first, int times = 1, uint64_t tokens = 100) {
    for (int i = 0; i < times; ++i) {
      clock_.Advance(seconds(1));
      TelemetryReport report{.instance_id = gpu_.Describe()->instance_id,
                             .model_digest = "digest",
                             .sequence = ++sequence_,
                             .epoch = publisher_->Get(0, false)->plan.epoch,
                             .steps = tokens,
                             .decode_steps = tokens,
                             .decode_rows = tokens,
                             .num_neurons = 70};
      report.layers.resize(2);
      for (LayerTelemetry& layer : report.layers) {
        layer.counts.tokens = tokens;
        layer.counts.timed_steps = tokens;
        layer.counts.gpu_ns = tokens * step_ns_;
        layer.predicted.assign(70, static_cast<uint32_t>(tokens / 50));
        for (size_t n = first; n < first + 20; ++n) {
          layer.predicted[n] = static_cast<uint32_t>(tokens * 9 / 10);
        }
        layer.fired = layer.predicted;
      }
      const absl::Status status = traffic_->Accept(report);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  RecomputationRecord Recompute(RecomputeParams params, int rounds = 1) {
    const auto first = publisher_->Recompute(params);
    EXPECT_TRUE(first.ok()) << first.status();
    if (!first.ok()) return {};
    params.request_id = first->id;
    for (int i = 0; i < rounds; ++i) Round();
    return *publisher_->Recompute(params);
  }
  absl::StatusOr<PlanRecord> Pin(bool pinned) {
    absl::StatusOr<PlanRecord> out = absl::UnknownError("not answered");
    publisher_->SetPin({.request_id = "", .pinned = pinned}, [&](const auto& r) { out = r; });
    Round();
    return out;
  }
  int64_t HotAmong(size_t first) {
    int64_t count = 0;
    for (const LayerPlacement& layer : Live().layers) {
      for (size_t n = first; n < first + 20; ++n) count += layer.hot[n / 64] >> (n % 64) & 1;
    }
    return count;
  }

  int64_t sequence_ = 0;
  uint64_t step_ns_ = 1'000;
};

TEST_F(PlanMovesControlTest, RecomputeMovesWhatTheTrafficWants) {
  options_.follow = false;
  Start();
  Round();
  Traffic(5, 20);
  const RecomputationRecord done = Recompute({.request_id = "a"});
  EXPECT_EQ(done.state, RecomputationState::kApplied) << done.reason;
  EXPECT_EQ(done.progress, 1);
  EXPECT_EQ(done.proposal.epoch, 2);
  EXPECT_GT(done.moved_neurons, 0);
  EXPECT_GT(done.moved_bytes, 0);
  EXPECT_GT(done.predicted_gain, 0.2);
  EXPECT_THAT(done.reason, HasSubstr("hit share"));
  EXPECT_EQ(HotAmong(5), 40);  // all of the budget
  EXPECT_EQ(Live().cause, PlacementCause::kRecompute);
  EXPECT_EQ(store_->Get(2, false)->reason, done.reason);
  // Asked again, with the same id and with another.
  EXPECT_EQ(publisher_->Recompute({.request_id = "a"})->proposal.epoch, 2);
  const RecomputationRecord again = Recompute({.request_id = "b"});
  EXPECT_EQ(again.state, RecomputationState::kUnchanged);
  EXPECT_EQ(*store_->NewestEpoch(), 2);
  EXPECT_EQ(publisher_->Recompute({.request_id = "a", .dry_run = true}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(PlanMovesControlTest, ADryRunTellsAndMovesNothing) {
  options_.follow = false;
  Start();
  Round();
  Traffic(5, 20);
  const RecomputationRecord dry = Recompute({.request_id = "d", .dry_run = true});
  EXPECT_EQ(dry.state, RecomputationState::kProposed);
  EXPECT_GT(dry.moved_neurons, 0);
  EXPECT_GT(dry.predicted_gain, 0.2);
  EXPECT_EQ(dry.proposal.layers.size(), 2u);
  EXPECT_EQ(Live().epoch, 1);
  // The same answer after a restart, although the traffic is another by then.
  Start();
  Round();
  Traffic(40, 20);
  const auto again = publisher_->Recompute({.request_id = "d", .dry_run = true});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->state, RecomputationState::kProposed);
  EXPECT_EQ(again->moved_neurons, dry.moved_neurons);
  EXPECT_EQ(again->reason, dry.reason);
  PlacementPlan a, b;
  a.layers = again->proposal.layers;
  b.layers = dry.proposal.layers;
  EXPECT_EQ(PlanChecksum(a), PlanChecksum(b));
}

TEST_F(PlanMovesControlTest, RecomputeUnderAnotherBudgetEtagOrTimeLimit) {
  options_.follow = false;
  Start();
  Round();
  const RecomputationRecord small = Recompute({.request_id = "s", .budget_bytes = 100});
  EXPECT_EQ(small.state, RecomputationState::kApplied) << small.reason;
  EXPECT_EQ(Live().used_bytes, 100);
  EXPECT_EQ(publisher_->Recompute({.if_etag = "other"}).status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(Reason(publisher_->Recompute({.if_etag = "other"}).status()), "ETAG_MISMATCH");
  EXPECT_EQ(publisher_->Recompute({.budget_bytes = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto limited = publisher_->Recompute(
      {.request_id = "t", .budget_bytes = 200, .time_limit = milliseconds(500)});
  ASSERT_TRUE(limited.ok());
  EXPECT_EQ(limited->state, RecomputationState::kQueued);
  EXPECT_EQ(Reason(publisher_->Recompute({.request_id = "u"}).status()), "RECOMPUTE_RUNNING");
  clock_.Advance(seconds(1));
  Round();
  const auto late = publisher_->Recompute(
      {.request_id = "t", .budget_bytes = 200, .time_limit = milliseconds(500)});
  EXPECT_EQ(late->state, RecomputationState::kFailed);
  EXPECT_THAT(late->reason, HasSubstr("time limit"));
  // A worker that is slow beyond it fails the plan, and the old one stays.
  cpu_.SetAway(true);
  publisher_->Recompute({.request_id = "v", .budget_bytes = 200, .time_limit = seconds(5)})
      .IgnoreError();
  Round();
  EXPECT_EQ(publisher_->Recompute({.request_id = "v", .budget_bytes = 200})->state,
            RecomputationState::kCopying);
  clock_.Advance(seconds(6));
  cpu_.SetAway(false);
  Round();
  EXPECT_EQ(publisher_->Recompute({.request_id = "v", .budget_bytes = 200})->state,
            RecomputationState::kFailed);
  EXPECT_EQ(Live().used_bytes, 100);
}

TEST_F(PlanMovesControlTest, ARecomputationIsAnsweredOnceAcrossDeaths) {
  FaultyVfs vfs;
  int applied = 0;
  for (int n = 0; n < 40; ++n) {
    publisher_.reset();
    store_.reset();
    vfs.Heal();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directory(directory_);
    gpu_.Restart();
    cpu_.Restart();
    sequence_ = 0;
    options_.follow = false;
    Start(vfs.name());
    Round();
    Traffic(5, 20);
    vfs.FailAfter(n, SQLITE_IOERR_WRITE);
    publisher_->Recompute({.request_id = "id"}).IgnoreError();
    Round();
    const bool died = vfs.fired();
    vfs.Heal();
    Start();
    Round();
    Round();
    Traffic(5, 20);
    const RecomputationRecord again = Recompute({.request_id = "id"}, 2);
    EXPECT_TRUE(again.ended()) << n;
    EXPECT_EQ(again.state, RecomputationState::kApplied) << n << again.reason;
    EXPECT_EQ(again.proposal.epoch, Live().epoch) << n;
    EXPECT_LE(*store_->NewestEpoch(), 3) << n;  // a plan that failed took a number
    EXPECT_EQ(HotAmong(5), 40) << n;
    ++applied;
    if (!died) break;
    EXPECT_LT(n, 39);
  }
  EXPECT_GT(applied, 3);
}

TEST_F(PlanMovesControlTest, PinnedThePlanStays) {
  Start();
  Round();
  ASSERT_TRUE(Pin(true).ok());
  EXPECT_TRUE(publisher_->pinned());
  Traffic(5, 30);
  for (int i = 0; i < 5; ++i) Round();
  EXPECT_EQ(Live().epoch, 1);
  EXPECT_THAT(publisher_->status(), HasSubstr("pinned"));
  EXPECT_EQ(Reason(SetBudget({.bytes = 100}).status()), "PINNED");
  EXPECT_EQ(Reason(Rollback({.to_epoch = 1}).status()), "PINNED");
  const RecomputationRecord held = Recompute({.request_id = "a"});
  EXPECT_EQ(held.state, RecomputationState::kUnchanged);
  EXPECT_THAT(held.reason, HasSubstr("pinned"));
  EXPECT_EQ(Recompute({.request_id = "b", .dry_run = true}).state, RecomputationState::kProposed);
  Start();  // outlives a restart
  Round();
  EXPECT_TRUE(publisher_->pinned());
  // A smaller pool needs another plan all the same.
  gpu_.Restart({.name = "gpu_worker", .capacity_bytes = 200});
  Round();
  EXPECT_EQ(Live().used_bytes, 200);
  ASSERT_TRUE(Pin(false).ok());
  sequence_ = 0;
  for (int i = 0; i < 5; ++i) {
    Traffic(40, 5);  // another kind than that plan was made for
    Round();
  }
  EXPECT_EQ(Live().cause, PlacementCause::kTraffic);
}

TEST_F(PlanMovesControlTest, FollowsTheTrafficWithinItsCaps) {
  Start();
  Round();
  // The first reports say that the plan misses most activations: an alarm, then faster moves.
  const auto subscription = publisher_->feed().Subscribe([](PlanEvent) {});
  for (int i = 0; i < 30; ++i) {
    Traffic(5);
    Round();
  }
  EXPECT_GT(HotAmong(5), 36);
  EXPECT_EQ(Live().cause, PlacementCause::kTraffic);
  EXPECT_THAT(Live().profile, HasSubstr("live"));
  bool alarm = false;
  while (auto event = subscription->Take()) {
    alarm |= event->kind == PlanEvent::Kind::kAlarm && !event->message.empty();
  }
  EXPECT_TRUE(alarm);
  publisher_->feed().Unsubscribe(subscription);
  // Nothing happens without follow.
  options_.follow = false;
  Start();
  Round();
  const int64_t epoch = Live().epoch;
  for (int i = 0; i < 30; ++i) {
    Traffic(40);
    Round();
  }
  EXPECT_EQ(Live().epoch, epoch);
}

TEST_F(PlanMovesControlTest, AWorkerThatIsAwayStopsTheMoves) {
  Start();
  Round();
  Traffic(5, 5);
  cpu_.SetAway(true);
  for (int i = 0; i < 10; ++i) {
    Traffic(5);
    Round();
  }
  EXPECT_EQ(*store_->NewestEpoch(), 1);
  cpu_.SetAway(false);
  for (int i = 0; i < 3; ++i) {
    Traffic(5);
    Round();
  }
  EXPECT_GT(Live().epoch, 1);
}

TEST_F(PlanMovesControlTest, WhatAPlanGainedIsRecorded) {
  options_.follow = false;
  Start();
  Round();
  step_ns_ = 1'000;
  Traffic(5, 20);
  Round();
  EXPECT_NEAR(*store_->Get(1, false)->measured_hit_share, 0.25, 0.15);
  EXPECT_FALSE(store_->Get(1, false)->measured_gain.has_value());  // nothing was before it
  Recompute({.request_id = "a"});
  step_ns_ = 600;
  Traffic(5, 20);
  Round();
  const PlanRecord record = *store_->Get(2, false);
  EXPECT_GT(*record.measured_hit_share, 0.9);
  EXPECT_NEAR(*record.measured_gain, 0.4, 0.01);
  EXPECT_NEAR(record.predicted_gain, 0.6, 0.3);
  EXPECT_GT(publisher_->Get(0, false)->measured_gain.value_or(0), 0);
}

TEST_F(PlanMovesControlTest, WhatWasLearntOutlivesARestart) {
  options_.follow = false;
  Start();
  Round();
  Traffic(5, 20);
  clock_.Advance(seconds(60));
  Round();  // saves
  const double tokens = traffic_->Estimate().tokens;
  EXPECT_GT(tokens, 1'500);
  Start();
  Round();
  EXPECT_NEAR(traffic_->Estimate().tokens, tokens, 1);
  const RecomputationRecord done = Recompute({.request_id = "a"});
  EXPECT_EQ(done.state, RecomputationState::kApplied);
  EXPECT_EQ(HotAmong(5), 40);
  // The worker's numbering goes on, too.
  Traffic(5);
  EXPECT_EQ(traffic_->counts().lost, 0);
}

TEST_F(PlanMovesControlTest, ImportsHotSetsAsAProposal) {
  options_.follow = false;
  Start();
  Round();
  ImportPlanParams params{.request_id = "i", .source = "m.generated.gpuidx"};
  for (int l = 0; l < 2; ++l) {
    params.layers.push_back({.hot = {0b1111, 0}, .num_neurons = 70, .num_hot = 4});
  }
  ImportPlanParams dry = params;
  dry.request_id = "dry";
  dry.dry_run = true;
  publisher_->ImportPlan(dry).IgnoreError();
  Round();
  const auto proposed = publisher_->ImportPlan(dry);
  EXPECT_EQ(proposed->state, RecomputationState::kProposed) << proposed->reason;
  EXPECT_LT(proposed->predicted_gain, 0);  // it is worse than what the profile chose
  publisher_->ImportPlan(params).IgnoreError();
  Round();
  EXPECT_EQ(publisher_->ImportPlan(params)->state, RecomputationState::kApplied);
  EXPECT_EQ(Live().cause, PlacementCause::kImport);
  EXPECT_EQ(Live().layers[1].hot[0], 0b1111u);
  ImportPlanParams bad = params;
  bad.request_id = "bad";
  bad.layers.pop_back();
  publisher_->ImportPlan(bad).IgnoreError();
  Round();
  EXPECT_EQ(publisher_->ImportPlan(bad)->state, RecomputationState::kFailed);
  EXPECT_THAT(publisher_->ImportPlan(bad)->reason, HasSubstr("layers"));
}

TEST_F(PlanMovesControlTest, ImportsAProfileToLearnFrom) {
  options_.follow = false;
  Start();
  Round();
  ImportProfileParams params{.request_id = "p", .name = "books", .tokens = 5'000};
  params.predicted = {std::vector<float>(70, 0.0f), std::vector<float>(70, 0.0f)};
  for (std::vector<float>& layer : params.predicted) {
    std::fill(layer.begin() + 30, layer.begin() + 50, 0.8f);
  }
  const auto import = [&](ImportProfileParams wanted) {
    absl::Status out = absl::UnknownError("not answered");
    publisher_->ImportProfile(std::move(wanted), [&](const auto& r) { out = r.status(); });
    Round();
    return out;
  };
  ASSERT_TRUE(import(params).ok());
  EXPECT_EQ(Recompute({.request_id = "a"}).state, RecomputationState::kApplied);
  EXPECT_EQ(HotAmong(30), 40);
  EXPECT_EQ(Live().profile, "books");
  Traffic(30, 3);
  EXPECT_EQ(traffic_->Estimate().profile, "books + live");
  ASSERT_TRUE(import(params).ok());  // the same id is done once
  EXPECT_EQ(traffic_->Estimate().profile, "books + live");
  params.request_id = "again";
  ASSERT_TRUE(import(params).ok());
  EXPECT_EQ(traffic_->Estimate().profile, "books");
  params.request_id = "q";
  params.predicted[1][3] = 1.5f;
  EXPECT_EQ(import(params).code(), absl::StatusCode::kInvalidArgument);
  params.predicted.pop_back();
  EXPECT_EQ(import(params).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlanMovesControlTest, ASmallPoolIsLedToThePlanInSteps) {
  options_.follow = false;
  // Room for three bundles beside the forty.
  gpu_.Restart({.name = "gpu_worker", .spare_bytes = 30});
  Start();
  Round();
  ASSERT_EQ(Live().used_bytes, 400);
  Traffic(5, 20);
  const auto first = publisher_->Recompute({.request_id = "a"});
  ASSERT_TRUE(first.ok());
  int rounds = 0;
  while (!publisher_->Recompute({.request_id = "a"})->ended() && ++rounds < 50) {
    Round();
    for (const int64_t epoch : gpu_.Epochs()) {
      EXPECT_LE(gpu_.PlanOf(epoch).used_bytes, 400);
    }
  }
  const auto done = publisher_->Recompute({.request_id = "a"});
  EXPECT_EQ(done->state, RecomputationState::kApplied) << done->reason;
  // Forty in roomfuls of 3, 6, 12 and the rest.
  EXPECT_GE(rounds, 3);
  EXPECT_LE(rounds, 6);
  EXPECT_EQ(HotAmong(5), 40);
  EXPECT_THAT(gpu_.Epochs(), ElementsAre(0, Live().epoch));
  EXPECT_THAT(store_->Get(2, false)->reason, HasSubstr("step 1 towards"));
  // The same for a rollback, and with no room at all.
  gpu_.Restart({.name = "gpu_worker", .spare_bytes = 0});
  Round();
  absl::StatusOr<PlanRecord> back = absl::UnknownError("not answered");
  publisher_->Rollback({.request_id = "r", .to_epoch = 1}, [&](const auto& r) { back = r; });
  for (int i = 0; i < 200 && back.status().code() == absl::StatusCode::kUnknown; ++i) Round();
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->plan.etag, store_->Get(1, false)->plan.etag);
  EXPECT_EQ(Live().from_epoch, 1);
}

// Nobody chose the first hot set: it is changed at once, whatever the cap and the room.
TEST_F(PlanMovesControlTest, WithoutAProfileTheFirstTrafficDecides) {
  profile_ = PlacementProfile();
  options_.mover.moves_per_second = 0.01;
  gpu_.Restart({.name = "gpu_worker", .spare_bytes = 30});
  Start();
  Round();
  ASSERT_EQ(HotAmong(0), 40);
  Traffic(30);
  int rounds = 0;
  while (HotAmong(30) < 40 && ++rounds < 20) Round();
  EXPECT_LE(rounds, 6);
  Round();
  EXPECT_THAT(publisher_->status(), HasSubstr("learning the traffic"));
  EXPECT_EQ(Live().cause, PlacementCause::kTraffic);
}

TEST_F(PlanMovesControlTest, ALargerBudgetCountsOnTheMemoryThatComesWithIt) {
  options_.follow = false;
  gpu_.Restart({.name = "gpu_worker", .spare_bytes = 0});
  Start();
  Round();
  ASSERT_EQ(Live().used_bytes, 400);
  ASSERT_EQ(SetBudget({.bytes = 0})->plan.used_bytes, 0);
  Round();
  ASSERT_EQ(gpu_.Describe()->spare_bytes, 0);  // the memory went with the neurons
  const int64_t before = Live().epoch;
  const auto grown = SetBudget({.bytes = 300});
  ASSERT_TRUE(grown.ok()) << grown.status();
  EXPECT_EQ(grown->plan.used_bytes, 300);
  EXPECT_EQ(grown->plan.epoch, before + 1);  // at once, not in steps
  // What the device does not have is refused in its words, and the old plan serves on.
  gpu_.SetHook([](PreparePhase phase, int64_t, bool before_it) {
    return phase == PreparePhase::kPlan && before_it
               ? absl::ResourceExhaustedError("needs 100 B, 40 B are free")
               : absl::OkStatus();
  });
  const auto refused = SetBudget({.bytes = 400});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("40 B are free"));
  EXPECT_EQ(Live().epoch, grown->plan.epoch);
}

TEST_F(PlanMovesControlTest, AFailureOnTheWayEndsTheWish) {
  options_.follow = false;
  gpu_.Restart({.name = "gpu_worker", .spare_bytes = 30});
  Start();
  Round();
  Traffic(5, 20);
  publisher_->Recompute({.request_id = "a"}).IgnoreError();
  Round();
  Round();
  gpu_.SetHook([](PreparePhase phase, int64_t, bool before) {
    return phase == PreparePhase::kPlan && before ? absl::InternalError("broken")
                                                  : absl::OkStatus();
  });
  Round();
  gpu_.SetHook(nullptr);
  EXPECT_EQ(publisher_->Recompute({.request_id = "a"})->state, RecomputationState::kFailed);
  // It stays where it got to, and another wish goes on from there.
  EXPECT_GT(Live().epoch, 1);
  const RecomputationRecord again = Recompute({.request_id = "b"}, 30);
  EXPECT_EQ(again.state, RecomputationState::kApplied) << again.reason;
  EXPECT_EQ(HotAmong(5), 40);
}

}  // namespace
}  // namespace isotherm
