// The shipped model through the four processes: the tokens of tests/data/smollm2-relu/golden.json,
// which come from another implementation, up to the first step where the two best logits are so
// close that rounding may swap them.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <tuple>

#include "tests/integration/cluster.h"
#include "tests/integration/real_model.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

constexpr int64_t kFfnBytes = int64_t{30} * 1536 * 1856;
constexpr int32_t kEndToken = 2;
constexpr double kDenseMargin = 0.05;
// The predictor's scores are rounded, too, and a neuron more or less moves logits further.
constexpr double kPredictorMargin = 0.3;

struct GoldenAnswer {
  std::string name;
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;  // those that are certain
  bool exact = false;
  bool ends = false;  // with the end token, which no answer contains
};

std::vector<GoldenAnswer> ReadGolden() {
  std::ifstream file(std::string(ISOTHERM_SOURCE_DIR) + "/tests/data/smollm2-relu/golden.json");
  std::vector<GoldenAnswer> answers;
  for (const nlohmann::json& entry : nlohmann::json::parse(file)) {
    GoldenAnswer answer;
    answer.exact = entry.at("mode") == "dense";
    answer.name =
        entry.at("mode").get<std::string>() + ": " + entry.at("prompt").get<std::string>();
    answer.prompt = entry.at("prompt_ids").get<std::vector<int32_t>>();
    answer.tokens = entry.at("tokens").get<std::vector<int32_t>>();
    const auto margin = entry.at("margin").get<std::vector<double>>();
    const double least = answer.exact ? kDenseMargin : kPredictorMargin;
    const auto close =
        std::find_if(margin.begin(), margin.end(), [least](double m) { return m < least; });
    answer.tokens.resize(
        std::min<size_t>(answer.tokens.size(), static_cast<size_t>(close - margin.begin())));
    answer.ends = !answer.tokens.empty() && answer.tokens.back() == kEndToken;
    if (!answer.tokens.empty()) answers.push_back(std::move(answer));
  }
  return answers;
}

// (transport, per cent of the neurons' bytes that are hot)
class GoldenClusterTest : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  void SetUp() override {
    if (RealModelPath().empty()) {
      GTEST_SKIP() << "the shipped model is not on this device: build it, or name it with "
                      "ISOTHERM_TEST_MODEL";
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Shm, GoldenClusterTest,
                         testing::Combine(testing::Values("shm"), testing::Values(0, 20, 60, 100)));
INSTANTIATE_TEST_SUITE_P(Grpc, GoldenClusterTest,
                         testing::Combine(testing::Values("grpc"), testing::Values(20)));

TEST_P(GoldenClusterTest, TokensAreGoldenAloneAndInCompany) {
  const auto [transport, per_cent] = GetParam();
  Cluster cluster({.model = RealModelPath(),
                   .transport = transport,
                   .budget = std::to_string(kFfnBytes * per_cent / 100),
                   // Two cores are enough for the test, and no thread has to wait for one.
                   .cpu_threads = 1,
                   .gpu_threads = 1,
                   .gpu_flags = {"--context", "512"}});
  ASSERT_TRUE(cluster.WaitReady());
  const std::vector<GoldenAnswer> golden = ReadGolden();
  ASSERT_GE(golden.size(), 10u);
  const auto check = [&cluster](const GoldenAnswer& wanted) {
    const Answer answer = cluster.Generate(
        Cluster::Greedy(wanted.prompt, static_cast<int>(wanted.tokens.size()), wanted.exact));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    std::vector<int32_t> tokens = wanted.tokens;
    if (wanted.ends) tokens.pop_back();
    EXPECT_EQ(answer.token_ids, tokens) << wanted.name;
    EXPECT_EQ(answer.finish_reason,
              wanted.ends ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  };
  check(golden.front());
  // Each client goes on with the next as soon as it has one: requests of both modes and of other
  // lengths join and leave all the time.
  std::vector<std::future<void>> clients;
  for (size_t client = 0; client < 3; ++client) {
    clients.push_back(std::async(std::launch::async, [&, client] {
      for (size_t i = client; i < golden.size(); i += 3) check(golden[i]);
    }));
  }
  for (std::future<void>& client : clients) client.get();
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
