#include "gateway/scheduling/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "common/base/error_reason.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fake_step_workers.h"
#include "tests/fakes/recording_sink.h"

namespace isotherm {
namespace {

using std::chrono::milliseconds;

class SchedulerTest : public testing::Test {
 protected:
  void Make(const SchedulerOptions& options, const FakeStepWorkers::Options& worker_options = {}) {
    workers_ = std::make_unique<FakeStepWorkers>(worker_options);
    scheduler_ = std::make_unique<Scheduler>(options, workers_->gpu(), workers_->cpu(), clock_);
    workers_->Attach(scheduler_.get());
    workers_->KeepSent();
    workers_->StartGpu();
    workers_->StartCpu();
  }
  GenerationRequest Request(size_t prompt_tokens, int32_t max_tokens) {
    GenerationRequest request;
    request.request_id = std::to_string(next_id_++);
    for (size_t i = 0; i < prompt_tokens; ++i) request.prompt.push_back(static_cast<TokenId>(i));
    request.max_tokens = max_tokens;
    return request;
  }
  std::vector<TokenId> Golden(const GenerationRequest& request) const {
    return workers_->model().Golden(request.prompt, request.sampling.seed, *request.max_tokens,
                                    request.min_tokens, request.stop_token_ids);
  }
  static std::string Reason(const RecordingSink& sink) {
    return ErrorReasonOf(sink.status).value_or(ErrorReason{}).reason;
  }

  FakeClock clock_;
  std::unique_ptr<FakeStepWorkers> workers_;
  std::unique_ptr<Scheduler> scheduler_;
  int next_id_ = 0;
};

TEST_F(SchedulerTest, OneRequestRunsUnderGrantsToItsGoldenEnd) {
  Make({.max_grant = 8});
  RecordingSink sink;
  const GenerationRequest request = Request(40, 30);
  scheduler_->Submit(request, &sink);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.status, absl::OkStatus());
  EXPECT_EQ(sink.tokens[0], Golden(request));
  EXPECT_EQ(sink.ends[0], FinishReason::kLength);
  EXPECT_EQ(sink.progress, 40);
  // 40 prompt rows need two steps of 32; the other 29 tokens are mostly the worker's own account.
  EXPECT_GE(workers_->granted_steps_run(), 20);
  EXPECT_EQ(workers_->known_sequences(), 0u);
  EXPECT_DOUBLE_EQ(sink.stats.gpu_hit_share, 0.4);
}

TEST_F(SchedulerTest, LayerTimingsAreThoseOfTheRequestsOwnDecodeSteps) {
  Make({.max_grant = 4, .num_layers = 3});
  RecordingSink traced, plain;
  GenerationRequest request = Request(40, 21);
  request.layer_timings = true;
  scheduler_->Submit(request, &traced);
  scheduler_->Submit(Request(4, 30), &plain);
  workers_->RunUntilIdle();
  EXPECT_EQ(traced.stats.layers.layers, 3 * 20);
  EXPECT_DOUBLE_EQ(traced.stats.layers.attention_us, 10 * 60);
  // Posting, hot neurons and waiting took 11 us, the cold neurons 6 of them.
  EXPECT_DOUBLE_EQ(traced.stats.layers.handoff_us, 5 * 60);
  EXPECT_EQ(plain.stats.layers.layers, 0);
  for (const StepRequest& step : workers_->sent()) {
    EXPECT_EQ(step.layers.empty(), step.rows.empty() || step.rows.size() == 1) << step.step_id;
  }
}

TEST_F(SchedulerTest, DamagedWeightsEndWhatHasSpokenAndRunTheRestAgain) {
  Make({.max_grant = 4});
  RecordingSink begun, silent;
  scheduler_->Submit(Request(4, 100), &begun);
  workers_->RunStep();
  workers_->DeliverCpu();
  workers_->DeliverGpu();
  ASSERT_FALSE(begun.tokens[0].empty());
  const GenerationRequest request = Request(100, 10);
  scheduler_->Submit(request, &silent);
  workers_->RunStep();
  workers_->ReportDamage();
  workers_->RunUntilIdle();
  EXPECT_EQ(begun.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Reason(begun), "INTERNAL");
  EXPECT_EQ(silent.status, absl::OkStatus());
  EXPECT_EQ(silent.tokens[0], Golden(request));
  EXPECT_EQ(workers_->known_sequences(), 0u);
  EXPECT_EQ(scheduler_->state().pages_held, 0);
}

TEST_F(SchedulerTest, NextRequestGoesOutBeforeTheGrantRunsOut) {
  Make({.max_grant = 8, .grant_lead = 2});
  RecordingSink sink;
  scheduler_->Submit(Request(4, 100), &sink);
  ASSERT_EQ(workers_->sent().size(), 1u);
  EXPECT_EQ(workers_->sent()[0].grant, 8);
  for (int step = 0; step < 7; ++step) {
    ASSERT_EQ(workers_->sent().size(), 1u);
    workers_->RunStep();
    workers_->DeliverCpu();
    workers_->DeliverGpu();
  }
  ASSERT_EQ(workers_->sent().size(), 2u);
  EXPECT_FALSE(workers_->sent()[1].rows[0].token.has_value());
}

TEST_F(SchedulerTest, JoiningRequestEndsTheGrantAtTheNextStep) {
  Make({.max_grant = 16});
  RecordingSink first, second;
  second.steps_so_far = nullptr;
  scheduler_->Submit(Request(4, 200), &first);
  workers_->RunStep();
  scheduler_->Submit(Request(4, 5), &second);
  ASSERT_EQ(workers_->sent().size(), 2u);
  workers_->RunStep();
  while (workers_->DeliverCpu()) {
  }
  while (workers_->DeliverGpu()) {
  }
  EXPECT_EQ(second.tokens[0].size(), 1u);
}

TEST_F(SchedulerTest, CancelStopsTheWorkerWithinAStep) {
  Make({.max_grant = 16});
  RecordingSink sink;
  const RequestHandle handle = scheduler_->Submit(Request(4, 200), &sink);
  workers_->RunStep();
  scheduler_->Cancel(handle, absl::CancelledError("gone"));
  EXPECT_EQ(sink.status.code(), absl::StatusCode::kCancelled);
  const int64_t rows = workers_->rows_run();
  workers_->RunUntilIdle();
  EXPECT_EQ(workers_->rows_run(), rows);
  EXPECT_EQ(workers_->known_sequences(), 0u);
  EXPECT_EQ(scheduler_->state().pages_held, 0);
}

TEST_F(SchedulerTest, StopTextEndsTheChoiceAndExtraTokensAreDropped) {
  Make({.max_grant = 16});
  RecordingSink sink;
  sink.stop_text_after = 3;
  scheduler_->Submit(Request(4, 200), &sink);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0].size(), 3u);
  EXPECT_EQ(sink.ends[0], FinishReason::kStop);
  EXPECT_EQ(sink.status, absl::OkStatus());
}

TEST_F(SchedulerTest, FullQueueRefusesAtOnceWithRetryAfter) {
  Make({.max_sequences = 1, .max_queue = 2});
  std::vector<RecordingSink> sinks(4);
  for (RecordingSink& sink : sinks) scheduler_->Submit(Request(4, 4), &sink);
  EXPECT_EQ(sinks[3].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(sinks[3]), "QUEUE_FULL");
  EXPECT_TRUE(ErrorReasonOf(sinks[3].status)->retry_after.has_value());
  workers_->RunUntilIdle();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(sinks[i].status, absl::OkStatus());
}

TEST_F(SchedulerTest, WhatCanNeverFitIsRefusedWithoutAStep) {
  Make({}, {.kv_pages = 4, .page_size = 16, .context_length = 512});
  RecordingSink too_long, too_many;
  scheduler_->Submit(Request(33, 32), &too_long);
  GenerationRequest choices = Request(10, 25);
  choices.num_choices = 2;
  scheduler_->Submit(choices, &too_many);
  for (RecordingSink* sink : {&too_long, &too_many}) {
    EXPECT_EQ(sink->status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(*sink), "CONTEXT_LENGTH_EXCEEDED");
    EXPECT_FALSE(sink->accepted);
  }
  EXPECT_TRUE(workers_->sent().empty());
}

TEST_F(SchedulerTest, AbsentMaxTokensTakesWhatIsLeft) {
  Make({}, {.kv_pages = 64, .context_length = 50});
  RecordingSink sink;
  GenerationRequest request = Request(10, 1);
  request.max_tokens.reset();
  scheduler_->Submit(request, &sink);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0].size(), 40u);
}

TEST_F(SchedulerTest, AsksForPagesAndUsesThoseThatAreLent) {
  Make({.max_sequences = 4}, {.kv_pages = 8, .kv_pages_most = 24});
  RecordingSink sinks[3];
  std::vector<GenerationRequest> requests;
  for (RecordingSink& sink : sinks) {
    requests.push_back(Request(60, 40));  // seven pages each
    scheduler_->Submit(requests.back(), &sink);
  }
  // One runs, the others wait for pages; all are asked for.
  EXPECT_EQ(scheduler_->state().num_running, 1);
  EXPECT_GE(workers_->kv_demand().wanted, 3 * 5);
  EXPECT_EQ(workers_->kv_demand().top, 8);
  workers_->SetKvPages(24);
  for (int i = 0; i < 10 && scheduler_->state().num_running < 3; ++i) {
    workers_->RunStep();
    workers_->DeliverGpu();
    workers_->DeliverCpu();
  }
  EXPECT_EQ(scheduler_->state().num_running, 3);
  // Some are asked back while they are held: nothing is dropped, and they are not taken again.
  workers_->SetKvPages(12);
  EXPECT_GT(workers_->kv_demand().top, 12);
  workers_->RunUntilIdle();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(sinks[i].status, absl::OkStatus());
    EXPECT_EQ(sinks[i].tokens[0], Golden(requests[i]));
  }
  EXPECT_EQ(workers_->kv_demand().wanted, 0);
  EXPECT_EQ(workers_->kv_demand().top, 12);
  EXPECT_EQ(scheduler_->state().pages_total, 12);
  EXPECT_THAT(workers_->complaints(), testing::IsEmpty());
  // A new worker is told anew.
  workers_->KillGpu();
  workers_->StartGpu();
  RecordingSink again;
  scheduler_->Submit(Request(60, 4), &again);
  EXPECT_GT(workers_->kv_demand().wanted, 0);
  workers_->RunUntilIdle();
  EXPECT_EQ(again.status, absl::OkStatus());
}

TEST_F(SchedulerTest, NewestIsPreemptedAndResumesGolden) {
  Make({}, {.kv_pages = 8, .page_size = 16});
  RecordingSink first, second;
  const GenerationRequest a = Request(40, 80), b = Request(30, 90);
  scheduler_->Submit(a, &first);
  scheduler_->Submit(b, &second);
  workers_->RunUntilIdle();
  EXPECT_EQ(first.tokens[0], Golden(a));
  EXPECT_EQ(second.tokens[0], Golden(b));
  EXPECT_GT(scheduler_->state().preemptions, 0);
  EXPECT_THAT(workers_->complaints(), testing::IsEmpty());
}

TEST_F(SchedulerTest, LowerPriorityValueRunsFirstThenInOrder) {
  Make({.max_sequences = 1});
  RecordingSink running, later, sooner;
  int64_t steps = 0;
  scheduler_->Submit(Request(4, 4), &running);
  GenerationRequest urgent = Request(4, 4);
  urgent.priority = -1;
  scheduler_->Submit(Request(4, 4), &later);
  scheduler_->Submit(urgent, &sooner);
  EXPECT_EQ(later.position, 0);
  EXPECT_EQ(sooner.position, 0);
  later.steps_so_far = sooner.steps_so_far = &steps;
  while (workers_->RunStep()) {
    ++steps;
    while (workers_->DeliverCpu()) {
    }
    while (workers_->DeliverGpu()) {
    }
  }
  EXPECT_LT(sooner.first_token_after, later.first_token_after);
}

TEST_F(SchedulerTest, ALongPromptDoesNotDelayShortOnes) {
  Make({.max_sequences = 64}, {.kv_pages = 4096, .max_rows = 64, .context_length = 40'000});
  int64_t steps = 0;
  RecordingSink long_one;
  scheduler_->Submit(Request(32'000, 10), &long_one);
  std::vector<RecordingSink> short_ones(50);
  for (RecordingSink& sink : short_ones) {
    sink.steps_so_far = &steps;
    scheduler_->Submit(Request(20, 2), &sink);
  }
  for (; steps < 60; ++steps) {
    workers_->RunStep();
    while (workers_->DeliverCpu()) {
    }
    while (workers_->DeliverGpu()) {
    }
  }
  // 50 x 20 prompt rows at 64 a step and a share for the long one: some 20 steps, not the 500 that
  // the long prompt needs.
  for (const RecordingSink& sink : short_ones) {
    EXPECT_GE(sink.first_token_after, 0);
    EXPECT_LT(sink.first_token_after, 40);
  }
  EXPECT_GT(long_one.progress, 0);
}

TEST_F(SchedulerTest, DeadlineEndsAQueuedRequestWithoutAStep) {
  Make({.max_sequences = 1});
  RecordingSink running, queued;
  scheduler_->Submit(Request(4, 4), &running);
  GenerationRequest request = Request(4, 4);
  request.deadline = clock_.Now() + milliseconds(50);
  scheduler_->Submit(request, &queued);
  EXPECT_EQ(scheduler_->NextWakeup(), request.deadline);
  clock_.Advance(milliseconds(50));
  scheduler_->Tick();
  EXPECT_EQ(queued.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Reason(queued), "DEADLINE");
  workers_->RunUntilIdle();
  EXPECT_EQ(running.status, absl::OkStatus());
}

TEST_F(SchedulerTest, AReaderThatDoesNotReadIsCutAndItsMatesGoOn) {
  Make({.reader_timeout = milliseconds(100)});
  RecordingSink stuck, mate;
  const GenerationRequest request = Request(5, 20);
  scheduler_->Submit(Request(4, 400), &stuck);
  scheduler_->Submit(request, &mate);
  workers_->RunStep();
  stuck.unread_since = clock_.Now();
  clock_.Advance(milliseconds(100));
  scheduler_->Tick();
  EXPECT_EQ(stuck.status.code(), absl::StatusCode::kDeadlineExceeded);
  workers_->RunUntilIdle();
  EXPECT_EQ(mate.tokens[0], Golden(request));
}

TEST_F(SchedulerTest, WrongHashIsRecomputedOnceThenDataLoss) {
  Make({.max_grant = 0});
  RecordingSink once, twice;
  const GenerationRequest request = Request(4, 10);
  scheduler_->Submit(request, &once);
  workers_->CorruptNextStep();
  workers_->RunUntilIdle();
  EXPECT_EQ(once.tokens[0], Golden(request));
  EXPECT_EQ(once.status, absl::OkStatus());

  scheduler_->Submit(Request(4, 10), &twice);
  for (int i = 0; i < 2; ++i) {
    workers_->CorruptNextStep();
    workers_->RunStep();
    while (workers_->DeliverCpu()) {
    }
    while (workers_->DeliverGpu()) {
    }
  }
  workers_->RunUntilIdle();
  EXPECT_EQ(twice.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(twice.tokens.empty());
  EXPECT_EQ(scheduler_->state().hash_mismatches, 3);
}

TEST_F(SchedulerTest, TokenWaitsForTheCpuWorkersHash) {
  Make({.max_grant = 0});
  RecordingSink sink;
  scheduler_->Submit(Request(4, 10), &sink);
  workers_->RunStep();
  workers_->DeliverGpu();
  EXPECT_TRUE(sink.tokens.empty());
  workers_->DeliverCpu();
  EXPECT_EQ(sink.tokens[0].size(), 1u);
}

TEST_F(SchedulerTest, LostCpuWorkerLeavesTokensGolden) {
  Make({});
  RecordingSink sink;
  const GenerationRequest request = Request(4, 40);
  scheduler_->Submit(request, &sink);
  for (int i = 0; i < 5; ++i) workers_->RunStep();
  workers_->DeliverGpu();
  workers_->KillCpu();
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0], Golden(request));
  EXPECT_FALSE(scheduler_->state().cpu_attached);
}

TEST_F(SchedulerTest, GpuWorkerDeathRerunsOnceWhatSentNoToken) {
  Make({});
  RecordingSink fresh, begun;
  const GenerationRequest request = Request(40, 10);
  scheduler_->Submit(Request(4, 100), &begun);
  workers_->RunStep();
  workers_->DeliverCpu();
  workers_->DeliverGpu();
  scheduler_->Submit(request, &fresh);
  workers_->KillGpu();
  EXPECT_EQ(begun.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Reason(begun), "STEP_FAILED");
  EXPECT_FALSE(fresh.finished);
  workers_->StartGpu();
  workers_->RunUntilIdle();
  EXPECT_EQ(fresh.tokens[0], Golden(request));
}

TEST_F(SchedulerTest, TwoDeathsOnOneRequestEndIt) {
  Make({});
  RecordingSink sink;
  scheduler_->Submit(Request(40, 10), &sink);
  workers_->KillGpu();
  workers_->StartGpu();
  EXPECT_FALSE(sink.finished);
  workers_->KillGpu();
  EXPECT_EQ(sink.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Reason(sink), "INTERNAL");
}

TEST_F(SchedulerTest, WithoutAWorkerRequestsAreRefused) {
  Make({});
  workers_->KillGpu();
  RecordingSink sink;
  scheduler_->Submit(Request(4, 10), &sink);
  EXPECT_EQ(sink.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Reason(sink), "NO_WORKER");
}

TEST_F(SchedulerTest, StepsRunUnderTheNewestEpochThatBothWorkersKnow) {
  Make({});
  RecordingSink sink;
  const GenerationRequest request = Request(4, 60);
  scheduler_->Submit(request, &sink);
  EXPECT_EQ(workers_->sent().back().epoch, 0);
  workers_->RunStep();
  workers_->SetEpochs({0, 3});
  scheduler_->OnLive(3);
  EXPECT_EQ(workers_->sent().back().epoch, 3);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0], Golden(request));
  EXPECT_EQ(sink.stats.epoch, 3);
}

TEST_F(SchedulerTest, StaleEpochIsRetriedUnderACommonOne) {
  Make({});
  workers_->SetEpochs({0, 3});
  scheduler_->OnLive(3);
  RecordingSink sink;
  const GenerationRequest request = Request(4, 20);
  scheduler_->Submit(request, &sink);
  workers_->FailNextStep(absl::StatusCode::kAborted);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0], Golden(request));
  EXPECT_EQ(workers_->sent().back().epoch, 0);
}

TEST_F(SchedulerTest, CpuWorkersRefusalOfAnEpochIsNobodysFault) {
  Make({});
  workers_->SetEpochs({0, 3});
  scheduler_->OnLive(3);
  RecordingSink sink;
  const GenerationRequest request = Request(4, 20);
  scheduler_->Submit(request, &sink);
  workers_->RefuseLastCpuStep();
  workers_->DeliverCpu();
  EXPECT_EQ(workers_->sent().back().epoch, 0);
  workers_->RunUntilIdle();
  EXPECT_EQ(sink.tokens[0], Golden(request));
  EXPECT_EQ(scheduler_->state().hash_mismatches, 0);
}

TEST_F(SchedulerTest, DrainRefusesNewAndFinishesOld) {
  Make({});
  RecordingSink old_one, new_one;
  const GenerationRequest request = Request(4, 20);
  scheduler_->Submit(request, &old_one);
  scheduler_->Drain();
  scheduler_->Submit(Request(4, 20), &new_one);
  EXPECT_EQ(Reason(new_one), "DRAINING");
  workers_->RunUntilIdle();
  EXPECT_EQ(old_one.tokens[0], Golden(request));
}

TEST_F(SchedulerTest, ASilentWorkerIsGivenUpAfterTheStepTimeout) {
  Make({.step_timeout = milliseconds(500)});
  RecordingSink sink;
  scheduler_->Submit(Request(4, 20), &sink);
  for (int i = 0; i < 2; ++i) {
    clock_.Advance(milliseconds(500));
    scheduler_->Tick();
  }
  EXPECT_EQ(sink.status.code(), absl::StatusCode::kInternal);
}

TEST_F(SchedulerTest, StepsWaitForTheCpuStreamThatTheGpuWorkerReliesOn) {
  FakeStepWorkers::Options options;
  Make({.num_layers = 4}, options);
  scheduler_->OnDisconnected(WorkerKind::kCpu, absl::UnavailableError("stream broke"));
  RecordingSink sink;
  scheduler_->Submit(Request(4, 20), &sink);
  EXPECT_TRUE(workers_->sent().empty());
  clock_.Advance(milliseconds(2000));
  scheduler_->Tick();
  ASSERT_EQ(workers_->sent().size(), 1u);
  ASSERT_EQ(workers_->sent()[0].layers.size(), 1u);
  EXPECT_EQ(workers_->sent()[0].layers[0].mode, LayerMode::kGpuOnly);
}

}  // namespace
}  // namespace isotherm
