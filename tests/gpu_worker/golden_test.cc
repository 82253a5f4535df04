// The shipped model through a device backend, against the outputs of a plain F32 implementation.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/gpu_worker/device_harness.h"
#include "tests/reference/real_model.h"
#include "tests/reference/stored_logits.h"

namespace isotherm::gpu {
namespace {

// Of the mean divergence. Measured: 1.1e-5 with every neuron (the stored logits are F16, which
// alone makes 2e-6), 8e-4 with the predictor, where some neurons whose score is within rounding of
// the threshold flip; whatever the placement, within 5 %. A wrong rounding of z, KV in F32 or one
// lost layer of neurons is far above.
constexpr double kDenseDivergence = 5e-5;
constexpr double kPredictorDivergence = 2e-3;

const std::string kData = std::string(ISOTHERM_SOURCE_DIR) + "/tests/data/smollm2-relu";

TEST(GoldenTest, GreedyTokensEqualTheReferenceUpToTheFirstNarrowMargin) {
  ISOTHERM_SKIP_WITHOUT_DEVICE();
  const std::string path = reference::RealModelPath();
  ASSERT_NE(path, "") << reference::kNoRealModel;
  std::ifstream file(kData + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  for (const double share : {0.0, 0.6}) {
    DeviceHarness harness(path, 2, share);
    for (const auto& item : golden) {
      const bool dense = item.at("mode") == "dense";
      const auto tokens = item.at("tokens").get<std::vector<TokenId>>();
      const auto margin = item.at("margin").get<std::vector<double>>();
      size_t count = 0;
      while (count < tokens.size() && margin[count] >= (dense ? 0.05 : 0.3)) ++count;
      if (count == 0) continue;
      const std::vector<TokenId> got =
          harness.Greedy(item.at("prompt_ids").get<std::vector<TokenId>>(), count, dense);
      EXPECT_EQ(got,
                std::vector<TokenId>(tokens.begin(), tokens.begin() + static_cast<int64_t>(count)))
          << item.at("mode") << " " << item.at("prompt");
    }
  }
}

// Mean over the positions of the divergence from our distribution to the reference's, in nats.
double MeanDivergence(DeviceHarness& harness, const reference::StoredLogits& want, bool exact,
                      size_t chunk) {
  std::vector<int32_t> pages(4);
  std::iota(pages.begin(), pages.end(), 0);
  double sum = 0;
  for (size_t at = 0; at < want.ids.size(); at += chunk) {
    const size_t count = std::min(chunk, want.ids.size() - at);
    std::vector<SamplingState> states(count, SamplingState({.params = {.temperature = 0}}));
    std::vector<DeviceRow> rows;
    for (size_t i = 0; i < count; ++i) {
      rows.push_back({.token = want.ids[at + i],
                      .position = static_cast<int32_t>(at + i),
                      .pages = pages,
                      .exact = exact,
                      .sampling = &states[i]});
    }
    harness.Run(rows);
    const std::vector<float> logits = harness.Logits();
    for (size_t i = 0; i < count; ++i) {
      const float* const got = logits.data() + static_cast<int64_t>(i) * want.vocab_size;
      sum += reference::Divergence(reference::LogSoftmax(want.row(at + i), want.vocab_size),
                                   reference::LogSoftmax(got, want.vocab_size));
    }
  }
  return sum / static_cast<double>(want.ids.size());
}

TEST(GoldenTest, MeanDivergenceOfTheLogitsStaysUnderTheBars) {
  ISOTHERM_SKIP_WITHOUT_DEVICE();
  const std::string path = reference::RealModelPath();
  ASSERT_NE(path, "") << reference::kNoRealModel;
  for (const std::string mode : {"dense", "predictor"}) {
    const bool exact = mode == "dense";
    const reference::StoredLogits want = reference::ReadStoredLogits(kData, mode);
    for (const double share : {0.0, 0.2, 0.6, 1.0}) {
      DeviceHarness harness(path, 2, share);
      for (const size_t chunk : {size_t{1}, size_t{7}, want.ids.size()}) {
        const double mean = MeanDivergence(harness, want, exact, chunk);
        RecordProperty(mode + "_" + std::to_string(share) + "_" + std::to_string(chunk),
                       std::to_string(mean));
        EXPECT_LT(mean, exact ? kDenseDivergence : kPredictorDivergence)
            << mode << ", hot share " << share << ", " << chunk << " rows a step";
      }
    }
  }
}

}  // namespace
}  // namespace isotherm::gpu
