#include "cpu_worker/engine/cold_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

class Results : public WorkerListener {
 public:
  void OnStepFinished(const StepResult& result) override { steps.push_back(result); }
  void OnStateChanged() override { ++changes; }
  std::vector<StepResult> steps;
  int changes = 0;
};

class ColdEngineTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    arena_ = *Arena::Load(ToySource(), {});
    engine_ = *ColdEngine::Create(*arena_, epochs_, ledger_, events_,
                                  {.num_threads = GetParam(), .max_rows = 8});
    events_.Add(&results_);
    ASSERT_TRUE(epochs_.Plan(ToyPlan(1, 3, 2), 1).ok());
    ASSERT_TRUE(epochs_.Commit(1, 1).ok());
  }
  shm::ColdLayerHeader Header(int64_t epoch, int32_t layer, int32_t rows, int32_t cut = 100) {
    return {.step_id = 40,
            .epoch = epoch,
            .layer = layer,
            .attempt = 2,
            .num_rows = rows,
            .cut = cut,
            .deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20)};
  }
  shm::ColdLayerOutcome Compute(const shm::ColdLayerHeader& header, const ToyPost& post) {
    partial_.assign(static_cast<size_t>(header.num_rows * 32), NAN);
    return engine_->Compute({.header = header,
                             .nonce = kNonce,
                             .z = post.z.data(),
                             .active = post.active.data(),
                             .row_keys = post.row_keys.data(),
                             .partial = partial_.data()});
  }

  static constexpr uint64_t kNonce = 77;
  std::unique_ptr<Arena> arena_;
  EpochTables epochs_{{.num_layers = 3, .num_neurons = 100, .digest = kToyDigest}};
  StepLedger ledger_;
  WorkerEvents events_;
  Results results_;
  std::unique_ptr<ColdEngine> engine_;
  std::vector<float> partial_;
};

TEST_P(ColdEngineTest, EqualsTheFormulaForEveryEpochCutAndBatch) {
  for (const int64_t epoch : {0, 1}) {
    for (const int32_t rows : {1, 3, 8}) {
      for (const int32_t cut : {0, 1, 63, 64, 70, 100}) {
        const ToyPost post(rows, static_cast<uint32_t>(rows * 100 + cut));
        const shm::ColdLayerHeader header = Header(epoch, cut % 3, rows, cut);
        const auto table = epochs_.Find(epoch);
        const auto want = ToyReference(arena_->layer(header.layer), header, kNonce, post,
                                       table->cold[static_cast<size_t>(header.layer)].data());
        const shm::ColdLayerOutcome got = Compute(header, post);
        ASSERT_EQ(got.status, shm::ColdLayerStatus::kDone);
        EXPECT_EQ(got.work_hash, want.work_hash);
        for (size_t i = 0; i < partial_.size(); ++i) {
          ASSERT_EQ(static_cast<double>(partial_[i]), want.partial[i]) << i;
        }
        int64_t pairs = 0;
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t id = 0; id < cut; ++id) {
            const auto word = static_cast<size_t>(id / 64);
            pairs += static_cast<int64_t>((post.active[static_cast<size_t>(row) * 2 + word] &
                                           table->cold[static_cast<size_t>(header.layer)][word]) >>
                                              (id % 64) &
                                          1);
          }
        }
        EXPECT_EQ(got.neurons, pairs);
      }
    }
  }
}

TEST_P(ColdEngineTest, HandsTheOutcomeOverOnceAndBeforeItReturnsIt) {
  const ToyPost post(2, 9);
  for (const shm::ColdLayerHeader& header : {Header(1, 0, 2), Header(9, 0, 2)}) {
    std::vector<shm::ColdLayerOutcome> handed;
    std::vector<float> then;
    partial_.assign(2 * 32, 0.0f);
    const shm::ColdLayerOutcome returned =
        engine_->Compute({.header = header,
                          .nonce = kNonce,
                          .z = post.z.data(),
                          .active = post.active.data(),
                          .row_keys = post.row_keys.data(),
                          .partial = partial_.data()},
                         [&](const shm::ColdLayerOutcome& outcome) {
                           handed.push_back(outcome);
                           then = partial_;
                         });
    ASSERT_EQ(handed.size(), 1u);
    EXPECT_EQ(handed[0].status, returned.status);
    EXPECT_EQ(handed[0].work_hash, returned.work_hash);
    EXPECT_EQ(handed[0].neurons, returned.neurons);
    EXPECT_EQ(then, partial_);
  }
}

TEST_P(ColdEngineTest, HotAndColdHashesAddUpToWhatIsOwed) {
  const ToyPost post(2, 5);
  const shm::ColdLayerHeader header = Header(1, 1, 2);
  const shm::ColdLayerOutcome cold = Compute(header, post);
  const std::vector<uint64_t> hot = ToyPlan(1, 3, 2).layers[1].hot;
  const auto hot_side = ToyReference(arena_->layer(1), header, kNonce, post, hot.data());
  const auto all = ToyReference(arena_->layer(1), header, kNonce, post, nullptr);
  EXPECT_EQ(cold.work_hash + hot_side.work_hash, all.work_hash);
  EXPECT_NE(cold.work_hash, 0u);
}

TEST_P(ColdEngineTest, TheEndOfAStepReportsItsTotal) {
  const ToyPost post(2, 6);
  uint64_t total = 0;
  int64_t neurons = 0;
  for (int32_t layer = 0; layer < 3; ++layer) {
    const shm::ColdLayerOutcome outcome = Compute(Header(1, layer, 2), post);
    total += outcome.work_hash;
    neurons += outcome.neurons;
  }
  engine_->EndStep(Header(1, shm::kEndOfStep, 0));
  ASSERT_EQ(results_.steps.size(), 1u);
  EXPECT_EQ(results_.steps[0].step_id, 40);
  EXPECT_EQ(results_.steps[0].attempt, 2);
  EXPECT_EQ(results_.steps[0].work_hash, total);
  EXPECT_EQ(results_.steps[0].active_neurons, neurons);
  engine_->EndStep(Header(1, shm::kEndOfStep, 0));
  EXPECT_EQ(results_.steps[1].work_hash, 0u);
}

TEST_P(ColdEngineTest, AnUnknownEpochIsStale) {
  const ToyPost post(1, 7);
  EXPECT_EQ(Compute(Header(9, 0, 1), post).status, shm::ColdLayerStatus::kStaleEpoch);
  ASSERT_TRUE(epochs_.Retire(1, 1).ok());
  EXPECT_EQ(Compute(Header(1, 0, 1), post).status, shm::ColdLayerStatus::kStaleEpoch);
}

TEST_P(ColdEngineTest, WorkPastItsDeadlineIsNotDone) {
  const ToyPost post(1, 8);
  shm::ColdLayerHeader header = Header(0, 0, 1);
  header.deadline = std::chrono::steady_clock::now();
  EXPECT_EQ(Compute(header, post).status, shm::ColdLayerStatus::kCancelled);
  engine_->EndStep(Header(0, shm::kEndOfStep, 0));
  EXPECT_EQ(results_.steps[0].work_hash, 0u);
}

TEST_P(ColdEngineTest, CountsWhatItComputed) {
  NeuronCounters before, counters;
  engine_->ReadCounters(&before);
  const ToyPost post(3, 9);
  const shm::ColdLayerHeader header = Header(1, 1, 3);
  ASSERT_EQ(Compute(header, post).status, shm::ColdLayerStatus::kDone);
  ASSERT_EQ(Compute(Header(9, 1, 3), post).status, shm::ColdLayerStatus::kStaleEpoch);
  engine_->EndStep(Header(1, shm::kEndOfStep, 0));
  engine_->ReadCounters(&counters);
  EXPECT_EQ(counters.epoch, 1);
  EXPECT_EQ(counters.steps, before.steps + 1);
  EXPECT_TRUE(counters.predicted.empty());
  EXPECT_EQ(counters.layers[0].tokens, 0u);
  EXPECT_EQ(counters.layers[1].tokens, 3u);
  EXPECT_EQ(counters.layers[1].timed_steps, 1u);
  EXPECT_GT(counters.layers[1].cpu_ns, 0u);
  EXPECT_GT(counters.layers[1].cold_bytes, 0u);
  EXPECT_EQ(counters.layers[1].timed_cold_bytes, counters.layers[1].cold_bytes);
  const auto table = epochs_.Find(1);
  uint32_t fired = 0;
  for (size_t n = 0; n < 300; ++n) {
    const uint32_t count = counters.fired[n];
    fired += count;
    EXPECT_LE(count, 3u);
    const bool cold =
        n >= 100 && n < 200 && (table->cold[1][(n - 100) / 64] >> ((n - 100) % 64) & 1);
    EXPECT_TRUE(cold || count == 0) << n;
  }
  EXPECT_GT(fired, 0u);
}

TEST_P(ColdEngineTest, ComputesNeuronsByTheModelsRule) {
  BundleSource twice = ToySource(), biased = ToySource(/*rows=*/2);
  twice.rule.activate_up = true;
  for (int64_t layer = 0; layer < 3; ++layer) {
    std::vector<float> bias;
    for (int64_t n = 0; n < 100; ++n) bias.push_back(static_cast<float>((n + layer) % 7) - 3);
    biased.rule.up_bias.push_back(bias);
  }
  for (const BundleSource& source : {twice, biased}) {
    const auto arena = *Arena::Load(source, {});
    const auto engine =
        *ColdEngine::Create(*arena, epochs_, ledger_, events_,
                            {.num_threads = GetParam(), .max_rows = 8, .rule = source.rule});
    for (int32_t layer = 0; layer < 3; ++layer) {
      const ToyPost post(3, static_cast<uint32_t>(layer));
      const shm::ColdLayerHeader header = Header(1, layer, 3);
      const auto table = epochs_.Find(1);
      const auto want = ToyReference(arena->layer(layer), header, kNonce, post,
                                     table->cold[static_cast<size_t>(layer)].data(), source);
      std::vector<float> partial(3 * 32, NAN);
      const shm::ColdLayerOutcome got = engine->Compute({.header = header,
                                                         .nonce = kNonce,
                                                         .z = post.z.data(),
                                                         .active = post.active.data(),
                                                         .row_keys = post.row_keys.data(),
                                                         .partial = partial.data()});
      ASSERT_EQ(got.status, shm::ColdLayerStatus::kDone);
      EXPECT_EQ(got.work_hash, want.work_hash);
      for (size_t i = 0; i < partial.size(); ++i) {
        ASSERT_EQ(static_cast<double>(partial[i]), want.partial[i]) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ColdEngineTest, testing::Values(1, 2, 4));

}  // namespace
}  // namespace isotherm::cpu
