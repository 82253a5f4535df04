// The shipped model through a device backend, against the outputs of a plain F32 implementation.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/gpu_worker/device_harness.h"
#include "tests/integration/real_model.h"

namespace isotherm::gpu {
namespace {

TEST(GoldenTest, GreedyTokensEqualTheReferenceUpToTheFirstNarrowMargin) {
  ISOTHERM_SKIP_WITHOUT_DEVICE();
  const std::string path = integration::RealModelPath();
  if (path.empty()) GTEST_SKIP() << "no built model on this device; see docs/testing.md";
  std::ifstream file(std::string(ISOTHERM_SOURCE_DIR) + "/tests/data/smollm2-relu/golden.json");
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

}  // namespace
}  // namespace isotherm::gpu
