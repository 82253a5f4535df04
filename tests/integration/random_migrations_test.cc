// Random hot sets, one after the other, while tokens flow: every output has the bits of no
// migration at all, although what leaves the GPU is overwritten at once. The completeness hash is
// checked for every step, as it always is.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/open_stream.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

// Publishes random plans through ImportPlan.
class RandomPlans {
 public:
  RandomPlans(const Cluster& cluster, uint64_t seed)
      : cluster_(cluster), stub_(cluster.Placement()), rng_(seed) {}

  // Returns once the plan is live.
  void PublishOne() {
    v1::ImportPlanRequest request = Make();
    v1::ImportPlanResponse response;
    const auto ended = [&] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + seconds(20));
      const grpc::Status status = stub_->ImportPlan(&context, request, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
      const v1::Recomputation& now = response.recomputation();
      // Steps that still name older epochs keep their neurons; it says so, and is asked again.
      if (now.state() == v1::RECOMPUTATION_STATE_FAILED &&
          now.reason().find("try again") != std::string::npos) {
        request.set_request_id("random-" + std::to_string(count_++));
        return false;
      }
      return now.state() >= v1::RECOMPUTATION_STATE_APPLIED;
    };
    ASSERT_TRUE(Eventually(seconds(30), ended)) << cluster_.Logs();
    const v1::Recomputation& done = response.recomputation();
    if (done.state() == v1::RECOMPUTATION_STATE_UNCHANGED) return;  // no or all neurons, again
    ASSERT_EQ(done.state(), v1::RECOMPUTATION_STATE_APPLIED) << done.reason();
    EXPECT_GT(done.proposal().epoch(), epoch_);
    epoch_ = done.proposal().epoch();
    moved_ += done.moved_neurons();
  }
  int64_t Random(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(rng_() % static_cast<uint64_t>(high - low + 1));
  }
  int64_t epoch() const { return epoch_; }
  int64_t moved() const { return moved_; }

 private:
  v1::ImportPlanRequest Make() {
    v1::ImportPlanRequest request;
    request.set_request_id("random-" + std::to_string(count_++));
    const int64_t density = Random(0, 8);  // of 8
    for (int l = 0; l < 4; ++l) {
      std::string bitmap(32, '\0');
      int64_t count = 0;
      for (int n = 0; n < 256; ++n) {
        if (Random(0, 7) >= density) continue;
        bitmap[static_cast<size_t>(n / 8)] |= static_cast<char>(1 << (n % 8));
        ++count;
      }
      v1::LayerPlacement* layer = request.add_layers();
      layer->set_gpu_bitmap(bitmap);
      layer->set_gpu_neurons(count);
      layer->set_total_neurons(256);
    }
    return request;
  }

  const Cluster& cluster_;
  const std::unique_ptr<v1::PlacementService::Stub> stub_;
  std::mt19937_64 rng_;
  int count_ = 0;
  int64_t epoch_ = 0, moved_ = 0;
};

int CountOf(const std::string& what, const std::string& text) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

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
                   .budget = std::to_string(kAllNeuronBytes),
                   .gpu_flags = {"--poison-freed"}});
  ASSERT_TRUE(cluster.WaitReady());
  ClientLoad load(cluster, model.Requests(8, 300), 3);
  RandomPlans plans(cluster, 5);
  for (int i = 0; i < migrations; ++i) {
    plans.PublishOne();
    if (HasFatalFailure()) return;
    // Something runs under each of them.
    ASSERT_TRUE(load.WaitForTokens(plans.Random(1, 20))) << cluster.Logs();
  }
  EXPECT_GT(plans.epoch(), migrations / 2);
  EXPECT_GT(plans.moved(), 100 * migrations);
  ASSERT_TRUE(load.WaitForTokens(600)) << cluster.Logs();
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 0);
  // A step that meets the end of its epoch is run again, which no client sees; but it should be
  // rare.
  EXPECT_LE(CountOf("sequences failed", cluster.Logs()), migrations / 60);
  EXPECT_TRUE(cluster.Stop());
}

// Pages for one sequence of the whole context and four that want some: sequences are preempted and
// run anew under whatever epoch is live by then, others are cancelled wherever they are.
TEST(FlipRacesTest, PreemptionsAndCancelsAmongFlipsChangeNoToken) {
  const IntegerModelFile model(4'321);
  Cluster cluster({.model = model.path(),
                   .budget = std::to_string(kAllNeuronBytes),
                   .gpu_flags = {"--poison-freed", "--context", "256", "--parallel", "1"},
                   .gateway_flags = {"--parallel", "4"}});
  ASSERT_TRUE(cluster.WaitReady());
  const auto channel = rpc::MakeChannel(cluster.address("gateway"));
  const std::vector<GoldenRequest> requests = model.Requests(8, 120);
  ClientLoad load(cluster, requests, 3);
  RandomPlans plans(cluster, 6);
  int cut = 0;
  for (int i = 0; i < 40; ++i) {
    const GoldenRequest& request = requests[static_cast<size_t>(i % 8)];
    OpenStream stream(channel,
                      Cluster::Greedy(request.prompt, static_cast<int>(request.tokens.size())), {});
    const bool running = i % 4 == 0 || stream.ReadTokens(static_cast<size_t>(plans.Random(1, 30)));
    plans.PublishOne();
    if (HasFatalFailure()) return;
    if (i % 2 == 0) plans.PublishOne();  // and once more before anything was read
    if (HasFatalFailure()) return;
    stream.Cancel();
    const Answer& answer = stream.Finish();
    if (!answer.status.ok()) {
      EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
      ++cut;
    }
    EXPECT_TRUE(running);
    EXPECT_TRUE(
        std::equal(answer.token_ids.begin(), answer.token_ids.end(), request.tokens.begin()));
  }
  EXPECT_GT(cut, 5);
  EXPECT_GT(plans.epoch(), 30);
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 5);
  ExpectGolden(cluster, requests[0]);
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
