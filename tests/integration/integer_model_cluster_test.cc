// The integer-weight model through the real processes: the tokens must be the oracle's, whatever
// the placement, transport, thread count or company.
#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "tests/integration/integer_model_file.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

constexpr int kPlacements = 20;

// (transport, threads of each worker)
class IntegerModelClusterTest : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  ClusterOptions Options() const {
    const auto [transport, threads] = GetParam();
    return {.model = model_.path(),
            .transport = transport,
            .budget = std::to_string(kAllNeuronBytes),
            .cpu_threads = threads,
            .gpu_threads = threads};
  }

  const IntegerModelFile model_{21};
};

INSTANTIATE_TEST_SUITE_P(Workers, IntegerModelClusterTest,
                         testing::Combine(testing::Values("shm", "grpc"),
                                          testing::Values(1, 2, 4, 8)));

grpc::Status SetBudget(v1::PlacementService::Stub& placement, int64_t bytes,
                       v1::PlacementPlan* plan) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(20));
  v1::SetBudgetRequest request;
  request.set_bytes(bytes);
  v1::SetBudgetResponse response;
  const grpc::Status status = placement.SetBudget(&context, request, &response);
  *plan = response.plan();
  return status;
}

grpc::Status Rollback(v1::PlacementService::Stub& placement, int64_t epoch,
                      v1::PlacementPlan* plan) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(20));
  v1::RollbackRequest request;
  request.set_to_epoch(epoch);
  v1::RollbackResponse response;
  const grpc::Status status = placement.Rollback(&context, request, &response);
  *plan = response.plan();
  return status;
}

TEST_P(IntegerModelClusterTest, MigrationsUnderLoadChangeNoToken) {
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.WaitReady());
  ClientLoad load(cluster, model_.Requests(6, 300), 3);
  const auto placement = cluster.Placement();
  std::mt19937_64 rng(17);
  std::vector<int64_t> epochs = {1};
  for (int i = 0; i < kPlacements; ++i) {
    ASSERT_TRUE(load.WaitForTokens(static_cast<int64_t>(1 + rng() % 100))) << cluster.Logs();
    v1::PlacementPlan plan;
    const bool back = epochs.size() > 2 && rng() % 3 == 0;
    const grpc::Status status =
        back ? Rollback(*placement, epochs[rng() % epochs.size()], &plan)
             : SetBudget(*placement, static_cast<int64_t>(rng() % (kAllNeuronBytes + 1)), &plan);
    ASSERT_TRUE(status.ok()) << status.error_message() << "\n" << cluster.Logs();
    EXPECT_GT(plan.epoch(), epochs.back());
    epochs.push_back(plan.epoch());
  }
  // Something must have run under the last plan, too.
  ASSERT_TRUE(load.WaitForTokens(600)) << cluster.Logs();
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 0);
  EXPECT_TRUE(cluster.Stop());
}

TEST_P(IntegerModelClusterTest, SplitsWorkBetweenTheWorkers) {
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.WaitReady());
  const auto placement = cluster.Placement();
  const GoldenRequest request = model_.Requests(1, 100)[0];
  const auto hit_share_with = [&](int64_t bytes) {
    v1::PlacementPlan plan;
    EXPECT_TRUE(SetBudget(*placement, bytes, &plan).ok());
    Answer answer;
    // The gateway hears of the plan a moment later.
    for (int i = 0; i < 100 && answer.summary.epoch() != plan.epoch(); ++i) {
      answer = cluster.Generate(Cluster::Greedy(request.prompt, 100));
      EXPECT_EQ(answer.token_ids, request.tokens);
    }
    EXPECT_EQ(answer.summary.epoch(), plan.epoch());
    // That one may have begun under the plan before.
    answer = cluster.Generate(Cluster::Greedy(request.prompt, 100));
    return answer.summary.timings().gpu_hit_share();
  };
  EXPECT_EQ(hit_share_with(0), 0);
  const double half = hit_share_with(kAllNeuronBytes / 2);
  EXPECT_GT(half, 0.1);
  EXPECT_LT(half, 0.95);
  v1::GenerateRequest timed = Cluster::Greedy(request.prompt, 100);
  timed.mutable_output()->set_layer_timings(true);
  const v1::LayerTimings layers = cluster.Generate(timed).summary.timings().layers();
  EXPECT_EQ(layers.layers(), 4 * 99);  // the first token came with the prompt
  EXPECT_GT(layers.attention_us(), 0);
  EXPECT_GT(layers.hot_us(), 0);
  EXPECT_GT(layers.cold_us(), 0);
  if (!Cluster::OnGpu()) {  // which computes so small a share of its own that it is always last
    EXPECT_GT(layers.wait_us(), 0);
    EXPECT_GT(layers.handoff_us(), 0);
  }
  EXPECT_EQ(hit_share_with(kAllNeuronBytes), 1);
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
