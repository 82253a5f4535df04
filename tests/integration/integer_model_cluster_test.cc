// The integer-weight model through the real processes: the tokens must be the oracle's, whatever the placement,
// transport, thread count or company.
#include <future>
#include <random>

#include "gtest/gtest.h"
#include "tests/integration/cluster.h"
#include "tests/reference/integer_model.h"

namespace isotherm::integration {
namespace {

class IntegerModelClusterTest : public testing::TestWithParam<const char*> {
 protected:
  IntegerModelClusterTest() {
    path_ = testing::TempDir() + "/integer-cluster.gguf";
    EXPECT_TRUE(model_.Write(path_, DType::kQ8_0).ok());
    prompts_ = model_.Prompts(23, 6);
  }
  ClusterOptions Options() const { return {.model = path_, .transport = GetParam(), .budget = "64MiB"}; }

  reference::IntegerModel model_{reference::IntegerModelOptions{.seed = 21}};
  std::string path_;
  std::vector<std::vector<int32_t>> prompts_;
};

INSTANTIATE_TEST_SUITE_P(Transports, IntegerModelClusterTest, testing::Values("shm", "grpc"));

TEST_P(IntegerModelClusterTest, RequestsThatShareStepsGetTheGoldenTokens) {
  Cluster cluster(Options());
  ASSERT_TRUE(cluster.WaitReady());
  std::vector<std::future<Answer>> answers;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] {
      return cluster.Generate(Cluster::Greedy(prompts_[i], 20 + 10 * static_cast<int>(i)));
    }));
  }
  for (size_t i = 0; i < prompts_.size(); ++i) {
    const Answer answer = answers[i].get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_TRUE(answer.complete);
    EXPECT_EQ(answer.token_ids, model_.Golden(prompts_[i], 20 + 10 * static_cast<int64_t>(i))) << i;
  }
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
