// Random schedules: whatever joins, leaves, fails or restarts, each request's tokens are a prefix
// of its golden continuation, the whole of it if it ended OK, and no page is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/process/log.h"
#include "gateway/request/derive_seed.h"
#include "gateway/scheduling/scheduler.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fake_step_workers.h"
#include "tests/fakes/recording_sink.h"

namespace isotherm {
namespace {

struct Submitted {
  GenerationRequest request;
  std::unique_ptr<RecordingSink> sink;
  RequestHandle handle = 0;
  bool cancelled = false;
};

struct Totals {
  int64_t ok = 0, aborted = 0, preemptions = 0, granted = 0, mismatches = 0, failures = 0,
          ignored = 0;
};

class Schedule {
 public:
  Schedule(uint64_t seed, bool faults)
      : random_(seed),
        faults_(faults),
        floor_pages_(Pick(8, 24)),
        most_pages_(Pick(0, 2) == 0 ? floor_pages_ + Pick(1, 16) : 0),
        workers_({.kv_pages = floor_pages_,
                  .kv_pages_most = most_pages_,
                  .page_size = Pick(0, 1) == 0 ? 16 : 4,
                  .max_rows = Pick(2, 24),
                  .context_length = 96,
                  .seed = seed}),
        scheduler_({.max_sequences = Pick(1, 6),
                    .max_queue = 64,
                    .max_grant = Pick(0, 16),
                    .grant_lead = Pick(0, 3)},
                   workers_.gpu(), workers_.cpu(), clock_) {
    workers_.Attach(&scheduler_);
    workers_.KeepSent();
    workers_.StartGpu();
    if (Pick(0, 3) != 0) workers_.StartCpu();
  }

  void Run(Totals& totals) {
    const int num_requests = Pick(1, 8);
    for (int i = 0; i < 400; ++i) Act(num_requests);
    if (!workers_.gpu_up()) workers_.StartGpu();
    if (most_pages_ > 0) workers_.SetKvPages(most_pages_);
    for (int i = 0; i < 40 && !AllFinished(); ++i) {
      clock_.Advance(std::chrono::milliseconds(2100));
      scheduler_.Tick();
      workers_.RunUntilIdle();
    }
    workers_.RunUntilIdle();
    if (std::getenv("SCHEDULE_SEED") != nullptr) {
      for (const StepRequest& step : workers_.sent()) {
        std::string line = absl::StrCat("step ", step.step_id, " grant ", step.grant, " rows");
        for (const StepRow& row : step.rows) absl::StrAppend(&line, " ", row.sequence);
        absl::StrAppend(&line, " release ", absl::StrJoin(step.release_sequences, ","));
        std::puts(line.c_str());
      }
    }
    Check(totals);
  }

 private:
  int Pick(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }

  bool AllFinished() const {
    for (const auto& s : submitted_) {
      if (!s->sink->finished) return false;
    }
    return true;
  }

  void Submit() {
    auto s = std::make_unique<Submitted>();
    s->sink = std::make_unique<RecordingSink>();
    GenerationRequest& request = s->request;
    request.request_id = std::to_string(submitted_.size());
    const int length = Pick(1, 40);
    for (int i = 0; i < length; ++i) request.prompt.push_back(Pick(0, 499));
    request.sampling.seed = Pick(0, 1000);
    request.max_tokens = Pick(1, 30);
    request.num_choices = Pick(0, 4) == 0 ? Pick(2, 3) : 1;
    request.min_tokens = Pick(0, 2) == 0 ? Pick(0, 5) : 0;
    request.priority = Pick(0, 2);
    for (int i = 0; i < 8; ++i) request.stop_token_ids.push_back(Pick(0, 499));
    if (Pick(0, 4) == 0) s->sink->stop_text_after = static_cast<size_t>(Pick(1, 10));
    s->handle = scheduler_.Submit(request, s->sink.get());
    submitted_.push_back(std::move(s));
  }

  void Act(int num_requests) {
    clock_.Advance(std::chrono::microseconds(Pick(0, 2000)));
    switch (const int action = Pick(0, faults_ ? 99 : 79)) {
      case 0 ... 9:
        if (static_cast<int>(submitted_.size()) < num_requests) Submit();
        break;
      case 10 ... 10:
        if (!submitted_.empty()) {
          Submitted& s = *submitted_[random_() % submitted_.size()];
          s.cancelled = true;
          scheduler_.Cancel(s.handle, absl::CancelledError("gone"));
        }
        break;
      case 11 ... 35:
        workers_.RunStep();
        break;
      case 36 ... 55:
        workers_.DeliverGpu();
        break;
      case 56 ... 75:
        workers_.DeliverCpu();
        break;
      case 76:
        scheduler_.Tick();
        break;
      case 77:
        if (most_pages_ > 0) workers_.SetKvPages(Pick(floor_pages_, most_pages_));
        break;
      case 78:
        scheduler_.OnLive(Pick(0, 4));
        break;
      case 79: {
        std::vector<int64_t> epochs{0};
        if (Pick(0, 1) == 0) epochs.push_back(Pick(1, 4));
        workers_.SetEpochs(epochs);
        break;
      }
      case 80 ... 81:
        workers_.FailNextStep(absl::StatusCode::kUnavailable);
        break;
      case 82 ... 83:
        workers_.CorruptNextStep();
        break;
      case 84:
        workers_.LoseNextCpuResult();
        break;
      case 85 ... 86:
        workers_.RepeatNextResult();
        break;
      case 87:
        if (workers_.gpu_up()) {
          workers_.KillGpu();
        } else {
          workers_.StartGpu();
        }
        break;
      case 88 ... 90:
        if (!workers_.gpu_up()) workers_.StartGpu();
        break;
      case 91 ... 92:
        if (workers_.cpu_up()) {
          workers_.KillCpu();
        } else {
          workers_.StartCpu();
        }
        break;
      case 93:
        clock_.Advance(std::chrono::milliseconds(1100));
        scheduler_.Tick();
        break;
      default:
        workers_.RunStep();
        workers_.DeliverGpu();
        (void)action;
    }
    const SchedulerState state = scheduler_.state();
    ASSERT_EQ(state.pages_free + state.pages_held, state.pages_total);
  }

  void Check(Totals& totals) {
    ASSERT_TRUE(AllFinished());
    EXPECT_THAT(workers_.complaints(), testing::IsEmpty());
    const SchedulerState state = scheduler_.state();
    EXPECT_EQ(state.pages_held, 0);
    EXPECT_EQ(state.pages_free, state.pages_total);
    EXPECT_EQ(state.num_running + state.num_waiting, 0);
    EXPECT_EQ(workers_.known_sequences(), 0u);
    if (most_pages_ > 0) {
      EXPECT_EQ(workers_.kv_demand().wanted, 0);
    }
    for (const auto& s : submitted_) {
      EXPECT_TRUE(s->sink->in_order);
      const bool too_long = s->sink->status.code() == absl::StatusCode::kInvalidArgument;
      if (!faults_ && !s->cancelled && workers_.gpu_up() && !too_long) {
        EXPECT_EQ(s->sink->status, absl::OkStatus());
      }
      if (s->sink->status.ok()) ++totals.ok;
      if (s->sink->status.code() == absl::StatusCode::kAborted) ++totals.aborted;
      for (int32_t choice = 0; choice < s->request.num_choices; ++choice) {
        std::vector<TokenId> golden = workers_.model().Golden(
            s->request.prompt, DeriveSeed(s->request.sampling.seed, choice),
            s->request.max_tokens.value_or(0), s->request.min_tokens, s->request.stop_token_ids);
        if (s->sink->stop_text_after > 0 && golden.size() > s->sink->stop_text_after) {
          golden.resize(s->sink->stop_text_after);
        }
        const std::vector<TokenId>& got = s->sink->tokens[choice];
        ASSERT_LE(got.size(), golden.size());
        EXPECT_TRUE(std::equal(got.begin(), got.end(), golden.begin()));
        if (s->sink->status.ok()) {
          EXPECT_EQ(got.size(), golden.size());
          EXPECT_TRUE(s->sink->ends.contains(choice));
        }
      }
    }
    totals.preemptions += state.preemptions;
    totals.granted += workers_.granted_steps_run();
    totals.mismatches += state.hash_mismatches;
    totals.failures += state.step_failures;
    totals.ignored += state.ignored_results;
  }

  std::mt19937_64 random_;
  const bool faults_;
  const int32_t floor_pages_, most_pages_;  // of KV; 0: they are fixed
  FakeClock clock_;
  FakeStepWorkers workers_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<Submitted>> submitted_;
};

void RunMany(bool faults, Totals& totals) {
  ASSERT_TRUE(InitLogging("scheduler", "off").ok());
  const char* only = std::getenv("SCHEDULE_SEED");
  const uint64_t first = only != nullptr ? std::strtoull(only, nullptr, 10) : 1;
  const uint64_t last = only != nullptr ? first : 5000;
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE(seed);
    Schedule(seed, faults).Run(totals);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SchedulerPropertyTest, EveryScheduleGivesTheGoldenContinuation) {
  Totals totals;
  RunMany(false, totals);
  // The schedules reached what they are meant to reach.
  EXPECT_GT(totals.ok, 100);
  EXPECT_GT(totals.preemptions, 100);
  EXPECT_GT(totals.granted, 100);
}

TEST(SchedulerPropertyTest, EveryFaultKeepsAPrefixOfTheGoldenContinuation) {
  Totals totals;
  RunMany(true, totals);
  EXPECT_GT(totals.ok, 100);
  EXPECT_GT(totals.aborted, 100);
  EXPECT_GT(totals.mismatches, 100);
  EXPECT_GT(totals.failures, 100);
  EXPECT_GT(totals.ignored, 100);
}

}  // namespace
}  // namespace isotherm
