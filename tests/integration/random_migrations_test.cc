// Random hot sets, one after the other, while tokens flow: every output has the bits of no
// migration at all, although what leaves the GPU is overwritten at once. The completeness hash is checked for every step, as it always is.
#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

// (migrations, transport)
class RandomMigrationsTest : public testing::TestWithParam<std::tuple<int, const char*>> {};
INSTANTIATE_TEST_SUITE_P(Commit, RandomMigrationsTest,
                         testing::Combine(testing::Values(60), testing::Values("shm", "grpc")));
INSTANTIATE_TEST_SUITE_P(Nightly, RandomMigrationsTest,
                         testing::Combine(testing::Values(1'000), testing::Values("shm")));

TEST_P(RandomMigrationsTest, ChangeNoToken) {
  const auto [migrations, transport] = GetParam();
  const IntegerModelFile model(1'234);
  Cluster cluster({.model = model.path(),
                   .transport = transport,
                   .gpu_flags = {"--poison-freed"},
                   .budget = std::to_string(IntegerModelFile::kAllNeuronBytes)});
  ASSERT_TRUE(cluster.WaitReady());
  ClientLoad load(cluster, model.Requests(8, 300), 3);
  const auto stub = cluster.Placement();
  std::mt19937_64 rng(5);
  int64_t epoch = 0, moved = 0;
  for (int i = 0; i < migrations && !testing::Test::HasFatalFailure(); ++i) {
    v1::ImportPlanRequest request;
    request.set_request_id("random-" + std::to_string(i));
    const uint64_t density = rng() % 9;  // of 8
    for (int l = 0; l < 4; ++l) {
      std::string bitmap(32, '\0');
      int64_t count = 0;
      for (int n = 0; n < 256; ++n) {
        if (rng() % 8 >= density) continue;
        bitmap[static_cast<size_t>(n / 8)] |= static_cast<char>(1 << (n % 8));
        ++count;
      }
      v1::LayerPlacement* layer = request.add_layers();
      layer->set_gpu_bitmap(bitmap);
      layer->set_gpu_neurons(count);
      layer->set_total_neurons(256);
    }
    v1::ImportPlanResponse response;
    const auto ended = [&] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + seconds(20));
      const grpc::Status status = stub->ImportPlan(&context, request, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
      return response.recomputation().state() >= v1::RECOMPUTATION_STATE_APPLIED;
    };
    ASSERT_TRUE(Eventually(seconds(30), ended)) << cluster.Logs();
    const v1::Recomputation& done = response.recomputation();
    ASSERT_TRUE(done.state() == v1::RECOMPUTATION_STATE_APPLIED ||
                done.state() == v1::RECOMPUTATION_STATE_UNCHANGED)
        << done.reason();
    EXPECT_GE(done.proposal().epoch(), epoch);
    epoch = done.proposal().epoch();
    moved += done.moved_neurons();
    // Something runs under each of them.
    ASSERT_TRUE(load.WaitForTokens(static_cast<int64_t>(1 + rng() % 20))) << cluster.Logs();
  }
  EXPECT_GT(epoch, migrations / 2);
  EXPECT_GT(moved, 100 * migrations);
  ASSERT_TRUE(load.WaitForTokens(600)) << cluster.Logs();
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 0);
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
