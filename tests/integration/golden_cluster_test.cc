// The shipped model through the four processes, against another implementation: the tokens of
// tests/data/smollm2-relu/golden.json up to the first step where the two best logits are so close
// that rounding may swap them, and the probabilities behind logits_*.npy.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <tuple>

#include "tests/integration/cluster.h"
#include "tests/reference/real_model.h"
#include "tests/reference/stored_logits.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

constexpr int64_t kFfnBytes = int64_t{30} * 1536 * 1856;
constexpr int32_t kEndToken = 2;
constexpr double kDenseMargin = 0.05;
// The predictor's scores are rounded, too, and a neuron more or less moves logits further.
constexpr double kPredictorMargin = 0.3;

// Of the mean divergence of the next token's probabilities, in nats; gpu_golden_test has the
// reasons.
constexpr double kDenseDivergence = 5e-5;
constexpr double kPredictorDivergence = 2e-3;

const std::string kData = std::string(ISOTHERM_SOURCE_DIR) + "/tests/data/smollm2-relu";

struct GoldenAnswer {
  std::string name;
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;  // those that are certain
  bool exact = false;
  bool ends = false;  // with the end token, which no answer contains
};

std::vector<GoldenAnswer> ReadGolden() {
  std::ifstream file(kData + "/golden.json");
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

// The divergence between the reference's probabilities at `position` and ours, over our most likely
// tokens and all others as one. A lower bound of the whole one, which no client can see.
double Divergence(const reference::StoredLogits& want, size_t position,
                  const v1::TokenLogprobs& ours) {
  const std::vector<double> all = reference::LogSoftmax(want.row(position), want.vocab_size);
  std::vector<double> log_p, log_q;
  double p_rest = 1, q_rest = 1;
  for (const v1::TokenLogprob& top : ours.top()) {
    log_p.push_back(all[static_cast<size_t>(top.token_id())]);
    log_q.push_back(static_cast<double>(top.logprob()));
    p_rest -= std::exp(log_p.back());
    q_rest -= std::exp(log_q.back());
  }
  log_p.push_back(std::log(std::max(p_rest, 1e-9)));
  log_q.push_back(std::log(std::max(q_rest, 1e-9)));
  return reference::Divergence(log_p, log_q);
}

// (transport, per cent of the neurons' bytes that are hot)
class GoldenClusterTest : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  void SetUp() override { ASSERT_NE(reference::RealModelPath(), "") << reference::kNoRealModel; }
};

INSTANTIATE_TEST_SUITE_P(Shm, GoldenClusterTest,
                         testing::Combine(testing::Values("shm"), testing::Values(0, 20, 60, 100)));
INSTANTIATE_TEST_SUITE_P(Grpc, GoldenClusterTest,
                         testing::Combine(testing::Values("grpc"), testing::Values(20)));

TEST_P(GoldenClusterTest, TokensAreGoldenAloneAndInCompany) {
  const auto [transport, per_cent] = GetParam();
  Cluster cluster({.model = reference::RealModelPath(),
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
  for (const bool exact : {true, false}) {
    const reference::StoredLogits want =
        reference::ReadStoredLogits(kData, exact ? "dense" : "predictor");
    double sum = 0;
    for (size_t position = 0; position < want.ids.size(); ++position) {
      v1::GenerateRequest request = Cluster::Greedy(
          {want.ids.begin(), want.ids.begin() + static_cast<int64_t>(position) + 1}, 1, exact);
      request.mutable_output()->set_top_logprobs(20);
      request.mutable_stop()->set_ignore_eos(true);
      const Answer answer = cluster.Generate(request);
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      ASSERT_EQ(answer.logprobs.size(), 1u);
      ASSERT_EQ(answer.logprobs[0].top_size(), 20);
      sum += Divergence(want, position, answer.logprobs[0]);
    }
    const double mean = sum / static_cast<double>(want.ids.size());
    EXPECT_LT(mean, exact ? kDenseDivergence : kPredictorDivergence) << "exact " << exact;
    RecordProperty(exact ? "dense_divergence" : "predictor_divergence", std::to_string(mean));
  }
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
