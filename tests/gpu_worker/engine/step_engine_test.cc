#include "gpu_worker/engine/step_engine.h"

#include <atomic>
#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_device.h"

namespace isotherm::gpu {
namespace {

using testing::ElementsAre;

class RecordingSink final : public StepSink {
 public:
  void OnHello(const WorkerHello& hello) override {
    std::lock_guard lock(mu_);
    hellos_.push_back(hello);
    changed_.notify_all();
  }
  void OnResult(const StepResult& result) override {
    std::lock_guard lock(mu_);
    results_.push_back(result);
    changed_.notify_all();
  }
  void OnUnavailable(const absl::Status& why) override {
    std::lock_guard lock(mu_);
    unavailable_ = why;
    changed_.notify_all();
  }
  std::vector<StepResult> Await(size_t count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return results_.size() >= count; });
    return results_;
  }
  std::vector<WorkerHello> AwaitHellos(size_t count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return hellos_.size() >= count; });
    return hellos_;
  }
  absl::Status AwaitUnavailable() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return !unavailable_.ok(); });
    return unavailable_;
  }
  size_t num_hellos() {
    std::lock_guard lock(mu_);
    return hellos_.size();
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<WorkerHello> hellos_;
  std::vector<StepResult> results_;
  absl::Status unavailable_;
};

// A cpu_worker that is alive or not, with an arena or not; never asked, as the fake device has no
// neurons.
class FakeAttachment final : public ColdAttachment, private ColdLink, private NeuronStore {
 public:
  FakeAttachment(bool alive, bool arena) : alive_(alive), arena_(arena) {}
  ColdLink& link() override { return *this; }
  const NeuronStore* arena() const override { return arena_ ? this : nullptr; }
  void Die() { alive_ = false; }

 private:
  bool alive() const override { return alive_; }
  uint64_t hash_nonce() const override { return 0; }
  absl::Status Post(const ColdLayer&) override { return absl::UnavailableError("fake"); }
  absl::StatusOr<ColdResult> Wait(TimePoint) override { return absl::UnavailableError("fake"); }
  absl::Status EndOfStep(int64_t, int64_t, int32_t, TimePoint) override { return absl::OkStatus(); }
  BundleView Layer(int64_t) const override { return {}; }
  std::atomic<bool> alive_;
  const bool arena_;
};

class StepEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    EXPECT_TRUE(engine_.SetCold(cold_).ok());
    connection_ = engine_.Connect(sink_);
  }
  ~StepEngineTest() override { device_.Release(); }

  // Brings sequence `id` in with `num_pages` pages and a prompt; its last row samples.
  static StepRequest Prefill(int64_t step_id, SequenceId id, const std::vector<TokenId>& prompt,
                             int32_t num_pages = 2, int32_t grant = 0) {
    StepRequest request{.step_id = step_id, .grant = grant};
    for (size_t i = 0; i < prompt.size(); ++i) {
      request.rows.push_back({.sequence = id,
                              .token = prompt[i],
                              .position = static_cast<int32_t>(i),
                              .sample = i + 1 == prompt.size()});
    }
    PageTableChange pages{.sequence = id};
    for (int32_t p = 0; p < num_pages; ++p) pages.append_pages.push_back(p);
    request.page_table.push_back(pages);
    request.sampling.push_back(
        {.sequence = id, .params = {.temperature = 0}, .penalty_tokens = prompt});
    return request;
  }
  static StepRequest Decode(int64_t step_id, SequenceId id, int32_t grant = 0) {
    return {.step_id = step_id, .rows = {{.sequence = id, .sample = true}}, .grant = grant};
  }
  void Submit(const StepRequest& request) {
    const absl::Status status = engine_.Submit(connection_, request);
    ASSERT_TRUE(status.ok()) << status;
  }
  StepResult Only(const StepRequest& request) {
    Submit(request);
    ++taken_;
    return sink_->Await(taken_).back();
  }
  void ExpectRefused(const StepRequest& request) {
    const StepResult result = Only(request);
    EXPECT_EQ(result.error_code, static_cast<int>(absl::StatusCode::kInvalidArgument))
        << result.error_message;
    EXPECT_TRUE(result.grant_ended);
    EXPECT_TRUE(result.rows.empty());
  }
  static std::vector<TokenId> Tokens(const std::vector<StepResult>& results) {
    std::vector<TokenId> out;
    for (const StepResult& result : results) {
      for (const RowResult& row : result.rows) out.push_back(row.token_id);
    }
    return out;
  }

  FakeDevice device_;
  const std::shared_ptr<FakeAttachment> cold_ = std::make_shared<FakeAttachment>(true, true);
  const std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::atomic<int> lost_ = 0;
  StepEngine engine_{device_,
                     {.instance_id = "me",
                      .model_digest = "digest",
                      .context_length = 64,
                      .on_device_lost = [this] { ++lost_; }}};
  int64_t connection_ = 0;
  size_t taken_ = 0;
};

TEST_F(StepEngineTest, HelloTellsWhatTheWorkerHas) {
  const WorkerHello hello = sink_->AwaitHellos(1)[0];
  EXPECT_EQ(hello.instance_id, "me");
  EXPECT_THAT(hello.epochs, ElementsAre(kBuiltInEpoch));
  EXPECT_EQ(hello.kv_pages, 64);
  EXPECT_EQ(hello.page_size, kPageSize);
  EXPECT_EQ(hello.context_length, 64);
  EXPECT_TRUE(hello.peer_attached);
}

TEST_F(StepEngineTest, HelloWaitsUntilColdNeuronsCanBeComputed) {
  StepEngine engine(device_, {.context_length = 64});
  const auto sink = std::make_shared<RecordingSink>();
  engine.Connect(sink);
  EXPECT_EQ(sink->num_hellos(), 0u);
  ASSERT_TRUE(engine.SetCold(std::make_shared<FakeAttachment>(true, false)).ok());
  EXPECT_EQ(sink->AwaitHellos(1).size(), 1u);
}

TEST_F(StepEngineTest, LosingThePeerIsAnnouncedAndWithoutAnArenaEndsTheStream) {
  cold_->Die();
  EXPECT_FALSE(sink_->AwaitHellos(2)[1].peer_attached);
  const auto remote = std::make_shared<FakeAttachment>(true, false);
  ASSERT_TRUE(engine_.SetCold(remote).ok());
  EXPECT_TRUE(sink_->AwaitHellos(3)[2].peer_attached);
  remote->Die();
  EXPECT_EQ(sink_->AwaitUnavailable().code(), absl::StatusCode::kUnavailable);
}

TEST_F(StepEngineTest, LendsPagesOnceHotNeuronsHaveLeft) {
  FakeDevice device(64);
  device.SetHotUsed(160);
  StepEngine engine(device, {.context_length = 64,
                             .kv_lease = KvLeaseOptions{.budget_bytes = 320,
                                                        .page_bytes = 10,
                                                        .floor_pages = 16,
                                                        .most_pages = 64,
                                                        .hot_floor_bytes = 80,
                                                        .chunk_pages = 8,
                                                        .hold = std::chrono::milliseconds(0)}});
  using Shares = std::pair<int64_t, int32_t>;
  EXPECT_EQ(device.AwaitShares(1), Shares(160, 16));
  ASSERT_TRUE(engine.SetCold(cold_).ok());
  const auto sink = std::make_shared<RecordingSink>();
  const int64_t connection = engine.Connect(sink);
  EXPECT_EQ(sink->AwaitHellos(1)[0].kv_pages, 16);
  EXPECT_EQ(sink->AwaitHellos(1)[0].kv_pages_most, 24);
  engine.SetKvDemand(connection + 1, {.wanted = 24, .top = 16});  // another gateway's
  engine.SetKvDemand(connection, {.wanted = 24, .top = 16});
  EXPECT_EQ(device.AwaitShares(2), Shares(80, 16));
  EXPECT_EQ(sink->num_hellos(), 1u);
  device.SetHotUsed(80);
  EXPECT_EQ(device.AwaitShares(3), Shares(80, 24));
  EXPECT_EQ(sink->AwaitHellos(2)[1].kv_pages, 24);
  // Given back: the pages go at once, what is behind them only when no step can name it.
  device.Hold();
  ASSERT_TRUE(engine.Submit(connection, Prefill(1, 1, {5})).ok());
  device.AwaitSteps(1);
  engine.SetKvDemand(connection, {.wanted = 0, .top = 24});
  EXPECT_EQ(sink->num_hellos(), 2u);  // the step before it runs still
  device.Release();
  EXPECT_EQ(sink->AwaitHellos(3)[2].kv_pages, 16);
  EXPECT_EQ(device.num_shares(), 3u);
  engine.SetKvDemand(connection, {.wanted = 0, .top = 16});
  EXPECT_EQ(device.AwaitShares(4), Shares(160, 16));
  // What a gateway that left had asked for is void.
  engine.SetKvDemand(connection, {.wanted = 24, .top = 16});
  EXPECT_EQ(device.AwaitShares(5), Shares(80, 24));
  const auto other = std::make_shared<RecordingSink>();
  const int64_t second = engine.Connect(other);
  EXPECT_EQ(other->AwaitHellos(2)[1].kv_pages, 16);
  EXPECT_EQ(device.num_shares(), 5u);  // it was told of 24 first
  engine.SetKvDemand(second, {.wanted = 0, .top = 16});
  EXPECT_EQ(device.AwaitShares(6), Shares(160, 16));
}

TEST_F(StepEngineTest, GrantFeedsSampledTokensBackAndReportsEachStep) {
  Submit(Prefill(10, 7, {5, 6, 7}, 2, 4));
  const std::vector<StepResult> results = sink_->Await(5);
  TokenId token = FakeDevice::NextToken(7, 2);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(results[i].step_id, 10 + static_cast<int64_t>(i));
    EXPECT_EQ(results[i].grant_ended, i == 4);
    ASSERT_EQ(results[i].rows.size(), 1u);
    EXPECT_EQ(results[i].rows[0].position, 2 + static_cast<int32_t>(i));
    EXPECT_EQ(results[i].rows[0].token_id, token);
    token = FakeDevice::NextToken(token, 3 + static_cast<int32_t>(i));
  }
}

TEST_F(StepEngineTest, SingleStepsGiveTheTokensOfAGrant) {
  Submit(Prefill(1, 1, {5, 6, 7}, 2, 9));
  const std::vector<TokenId> granted = Tokens(sink_->Await(10));
  taken_ = 10;
  std::vector<StepResult> single = {Only(Prefill(20, 2, {5, 6, 7}, 2))};
  while (single.size() < 10)
    single.push_back(Only(Decode(20 + static_cast<int64_t>(single.size()), 2)));
  EXPECT_EQ(Tokens(single), granted);
}

TEST_F(StepEngineTest, NewerRequestEndsTheGrantAtTheNextBoundary) {
  device_.Hold();
  Submit(Prefill(1, 1, {5}, 4, 20));
  device_.AwaitSteps(1);
  Submit(Decode(100, 1));
  device_.Release();
  const std::vector<StepResult> results = sink_->Await(2);
  EXPECT_EQ(results[0].step_id, 1);
  EXPECT_TRUE(results[0].grant_ended);
  EXPECT_EQ(results[1].step_id, 100);
  EXPECT_EQ(results[1].rows[0].position, 1);
}

TEST_F(StepEngineTest, TellsTheDeviceWhatAGrantRunsNext) {
  Submit(Prefill(1, 1, {5, 6, 7}, 1, 2));
  sink_->Await(3);
  const std::vector<FakeDevice::Step> steps = device_.steps();
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(steps[i].next.size(), i == 0 ? 0u : 1u);  // rows that do not sample are not followed
  }
  EXPECT_EQ(steps[1].next[0], (FakeDevice::Row{kSampledToken, 4, 1, false, true, 0}));
  EXPECT_TRUE(steps[2].next.empty());  // the grant's last
  // No page for what would follow, or a newer request waits.
  taken_ = 3;
  Submit(Prefill(10, 2, {5}, 1, 30));
  taken_ += static_cast<size_t>(kPageSize);
  sink_->Await(taken_);
  EXPECT_TRUE(device_.steps().back().next.empty());
}

TEST_F(StepEngineTest, AStepBegunEarlyRunsToItsEndBeforeANewerRequest) {
  device_.BeginNext();
  Only(Prefill(1, 1, {5}, 4));
  device_.Hold();
  Submit(Decode(10, 1, 20));
  device_.AwaitSteps(2);
  Submit(Decode(100, 1));
  device_.Release();
  const std::vector<StepResult> results = sink_->Await(4);
  EXPECT_FALSE(results[1].grant_ended);
  EXPECT_EQ(results[2].step_id, 11);
  EXPECT_TRUE(results[2].grant_ended);
  EXPECT_EQ(results[3].step_id, 100);
  EXPECT_EQ(results[3].rows[0].position, 3);
}

TEST_F(StepEngineTest, AStepBegunEarlyIsDroppedBehindAStopTokenOrAnAbort) {
  device_.BeginNext();
  StepRequest request = Prefill(1, 1, {5}, 4, 20);
  const TokenId first = FakeDevice::NextToken(5, 0), second = FakeDevice::NextToken(first, 1);
  request.sampling[0].stop_token_ids = {second};
  Submit(request);
  EXPECT_TRUE(sink_->Await(2)[1].grant_ended);
  device_.AwaitSettled(1);
  taken_ = 2;
  Only(Prefill(30, 2, {5}, 4));
  device_.AwaitSettled(2);
  device_.Hold();
  Submit(Decode(50, 2, 20));
  device_.AwaitSteps(4);
  engine_.Abort(connection_);
  device_.Release();
  EXPECT_TRUE(sink_->Await(4)[3].grant_ended);
  device_.AwaitSettled(3);
}

TEST_F(StepEngineTest, ThirdWaitingRequestIsRefused) {
  device_.Hold();
  Submit(Prefill(1, 1, {5}));
  device_.AwaitSteps(1);
  Submit(Decode(2, 1));
  Submit(Decode(3, 1));
  EXPECT_EQ(engine_.Submit(connection_, Decode(4, 1)).code(), absl::StatusCode::kResourceExhausted);
  device_.Release();
  EXPECT_EQ(sink_->Await(3)[2].step_id, 3);
}

TEST_F(StepEngineTest, StopTokenEndsItsRowAndTheGrant) {
  StepRequest request = Prefill(1, 1, {5}, 4, 20);
  const TokenId first = FakeDevice::NextToken(5, 0), second = FakeDevice::NextToken(first, 1);
  request.sampling[0].stop_token_ids = {second};
  Submit(request);
  const std::vector<StepResult> results = sink_->Await(2);
  EXPECT_EQ(results[0].rows[0].status, RowStatus::kOk);
  EXPECT_EQ(results[1].rows[0].status, RowStatus::kStopped);
  EXPECT_EQ(results[1].rows[0].token_id, second);
  EXPECT_TRUE(results[1].grant_ended);
  taken_ = 2;
  EXPECT_EQ(Only(Decode(50, 1)).step_id, 50);  // nothing of the grant came in between
}

TEST_F(StepEngineTest, GrantEndsWhereThePagesEnd) {
  Submit(Prefill(1, 1, {5}, 1, 30));
  const std::vector<StepResult> results = sink_->Await(kPageSize);
  EXPECT_TRUE(results[kPageSize - 1].grant_ended);
  taken_ = kPageSize;
  const StepResult without = Only(Decode(100, 1));
  ASSERT_EQ(without.rows.size(), 1u);
  EXPECT_EQ(without.rows[0].status, RowStatus::kNoPage);
  EXPECT_EQ(without.rows[0].position, kPageSize);
  EXPECT_TRUE(without.grant_ended);
  StepRequest with = Decode(101, 1);
  with.page_table.push_back({1, {9}});
  EXPECT_EQ(Only(with).rows[0].status, RowStatus::kOk);
}

TEST_F(StepEngineTest, AbortEndsTheGrantAndDropsWhatWaits) {
  device_.Hold();
  Submit(Prefill(1, 1, {5}, 4, 20));
  device_.AwaitSteps(1);
  Submit(Decode(50, 1));
  engine_.Abort(connection_);
  device_.Release();
  EXPECT_TRUE(sink_->Await(1)[0].grant_ended);
  taken_ = 1;
  EXPECT_EQ(Only(Decode(60, 1)).step_id, 60);
}

TEST_F(StepEngineTest, RowsOutOfBoundsFailTheStepAndNothingElse) {
  ExpectRefused(Decode(1, 99));  // unknown sequence
  StepRequest no_sampling = Prefill(2, 1, {5});
  no_sampling.sampling.clear();
  ExpectRefused(no_sampling);
  ExpectRefused({.step_id = 3, .rows = {{.sequence = 1}}});  // nothing was sampled yet
  StepRequest page = Prefill(4, 2, {5});
  page.page_table[0].append_pages = {64};
  ExpectRefused(page);
  StepRequest position = Prefill(5, 3, {5}, 8);
  position.rows[0].position = 64;  // the context's end
  ExpectRefused(position);
  position.rows[0].position = -1;
  ExpectRefused(position);
  StepRequest twice = Prefill(6, 4, {5, 6});
  twice.rows[0].sample = true;
  ExpectRefused(twice);
  StepRequest backwards = Prefill(7, 5, {5, 6});
  std::swap(backwards.rows[0], backwards.rows[1]);
  backwards.rows[0].sample = false;
  ExpectRefused(backwards);
  StepRequest same = Prefill(8, 6, {5, 6});
  same.rows[1].position = 0;
  ExpectRefused(same);
  EXPECT_TRUE(device_.steps().empty());
  EXPECT_EQ(Only(Prefill(9, 7, {5})).rows[0].token_id, FakeDevice::NextToken(5, 0));
}

TEST_F(StepEngineTest, DeviceFailureVoidsTheRowsAndEndsTheGrant) {
  device_.FailNextStep(absl::DeadlineExceededError("late"));
  Submit(Prefill(1, 1, {5}, 2, 8));
  const StepResult result = sink_->Await(1)[0];
  EXPECT_EQ(result.error_code, static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(result.error_message, "late");
  EXPECT_TRUE(result.rows.empty());
  EXPECT_TRUE(result.grant_ended);
}

TEST_F(StepEngineTest, ALostDeviceIsReportedInsteadOfTheStep) {
  device_.FailNextStep(absl::InternalError("broken"));
  EXPECT_EQ(Only(Prefill(1, 1, {5})).error_code, static_cast<int>(absl::StatusCode::kInternal));
  ASSERT_TRUE(engine_.Prepare({.epoch = 3}, {}).ok());
  EXPECT_EQ(lost_, 0);
  device_.Lose();
  Submit(Prefill(2, 2, {5}));
  while (lost_ == 0) std::this_thread::yield();
  // Nobody may have a step to run: a plan that fails tells it, too.
  EXPECT_FALSE(engine_.Prepare({.epoch = 4}, {}).ok());
  EXPECT_EQ(lost_, 2);
  EXPECT_EQ(sink_->Await(1).size(),
            1u);  // of the step before; who waits learns by the process's end
}

TEST_F(StepEngineTest, EpochMustBeCommitted) {
  StepRequest request = Prefill(1, 1, {5});
  request.epoch = 3;
  EXPECT_EQ(Only(request).error_code, static_cast<int>(absl::StatusCode::kAborted));
  EXPECT_EQ(engine_.Commit(3).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(engine_.Prepare({.epoch = 3}, {}).ok());
  EXPECT_NE(device_.source(), nullptr);  // the mapped arena
  EXPECT_EQ(Only(request).error_code, static_cast<int>(absl::StatusCode::kAborted));
  ASSERT_TRUE(engine_.Commit(3).ok());
  EXPECT_THAT(sink_->AwaitHellos(2)[1].epochs, ElementsAre(0, 3));
  EXPECT_EQ(Only(request).error_code, 0);
  EXPECT_EQ(device_.steps().back().epoch, 3);
  EXPECT_EQ(engine_.AbortPlan(3).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(StepEngineTest, RetireWaitsForTheStepAndEndsItsGrant) {
  ASSERT_TRUE(engine_.Prepare({.epoch = 3}, {}).ok());
  ASSERT_TRUE(engine_.Commit(3).ok());
  device_.Hold();
  StepRequest request = Prefill(1, 1, {5}, 4, 20);
  request.epoch = 3;
  Submit(request);
  device_.AwaitSteps(1);
  std::future<absl::Status> retired =
      std::async(std::launch::async, [&] { return engine_.Retire(3); });
  EXPECT_THAT(sink_->AwaitHellos(3)[2].epochs, ElementsAre(0));  // Retire is under way
  EXPECT_TRUE(device_.Has(3));
  device_.Release();
  EXPECT_TRUE(retired.get().ok());
  EXPECT_FALSE(device_.Has(3));
  EXPECT_TRUE(sink_->Await(1)[0].grant_ended);
  EXPECT_EQ(engine_.Retire(kBuiltInEpoch).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StepEngineTest, WhatWasSentBeforeItsEpochWasRetiredStillRuns) {
  ASSERT_TRUE(engine_.Prepare({.epoch = 3}, {}).ok());
  ASSERT_TRUE(engine_.Commit(3).ok());
  device_.Hold();
  StepRequest first = Prefill(1, 1, {5}, 4), second = Decode(2, 1);
  first.epoch = second.epoch = 3;
  Submit(first);
  device_.AwaitSteps(1);
  Submit(second);
  std::future<absl::Status> retired =
      std::async(std::launch::async, [&] { return engine_.Retire(3); });
  EXPECT_THAT(sink_->AwaitHellos(3)[2].epochs, ElementsAre(0));
  EXPECT_EQ(engine_.Commit(3).code(), absl::StatusCode::kUnavailable);
  device_.Release();
  const std::vector<StepResult> results = sink_->Await(2);
  EXPECT_EQ(results[0].error_code, 0) << results[0].error_message;
  EXPECT_EQ(results[1].error_code, 0) << results[1].error_message;
  EXPECT_EQ(results[1].epoch, 3);
  EXPECT_TRUE(retired.get().ok());
  EXPECT_FALSE(device_.Has(3));
  taken_ = 2;
  StepRequest late = Decode(3, 1);
  late.epoch = 3;
  EXPECT_EQ(Only(late).error_code, static_cast<int>(absl::StatusCode::kAborted));
}

TEST_F(StepEngineTest, AnotherGatewayStartsWithNoSequences) {
  Only(Prefill(1, 1, {5}));
  const auto other = std::make_shared<RecordingSink>();
  const int64_t connection = engine_.Connect(other);
  EXPECT_EQ(engine_.Submit(connection_, Decode(2, 1)).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(engine_.Submit(connection, Decode(3, 1)).ok());
  EXPECT_EQ(other->Await(1)[0].error_code, static_cast<int>(absl::StatusCode::kInvalidArgument));
  engine_.Disconnect(connection_);  // late; must not end the newer one
  ASSERT_TRUE(engine_.Submit(connection, Prefill(4, 1, {5})).ok());
  EXPECT_EQ(other->Await(2)[1].error_code, 0);
}

TEST_F(StepEngineTest, ReleasedSequenceIsForgotten) {
  Only(Prefill(1, 1, {5}));
  StepRequest release{.step_id = 2, .release_sequences = {1}};
  EXPECT_EQ(Only(release).error_code, 0);
  ExpectRefused(Decode(3, 1));
}

TEST_F(StepEngineTest, TokensFedPastThePromptCountAsSampledOnce) {
  StepRequest resumed = Prefill(1, 1, {5, 6, 7, 8, 9});
  resumed.sampling[0].penalty_tokens = {5, 6, 7};  // 8 and 9 were sampled before
  device_.FailNextStep(absl::UnavailableError("gone"));
  EXPECT_NE(Only(resumed).error_code, 0);
  resumed.sampling.clear();
  resumed.page_table.clear();
  resumed.step_id = 2;
  Only(resumed);
  const auto steps = device_.steps();
  EXPECT_EQ(steps[0].rows.back().num_sampled, 2);
}

TEST_F(StepEngineTest, ModesAndDeadlineReachTheDevice) {
  StepRequest request = Prefill(1, 1, {5});
  request.layers = {{.first = 0, .last = 2, .mode = LayerMode::kExact, .trace = true}};
  request.deadline_us = 5'000'000;
  const TimePoint before = std::chrono::steady_clock::now();
  Only(request);
  const FakeDevice::Step step = device_.steps()[0];
  ASSERT_EQ(step.layers.size(), 1u);
  EXPECT_EQ(step.layers[0].mode, LayerMode::kExact);
  EXPECT_GE(step.deadline, before + std::chrono::seconds(5));
  EXPECT_LT(step.deadline, before + std::chrono::seconds(25));  // not the default of 30
}

}  // namespace
}  // namespace isotherm::gpu
