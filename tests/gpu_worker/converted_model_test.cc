// A model that `models convert` wrote computes what the one it came from computes.
#include <cmath>

#include "models/convert/conversion.h"
#include "tests/gpu_worker/device_harness.h"
#include "tests/models/temp_folder.h"
#include "tests/reference/random_model.h"

namespace isotherm::gpu {
namespace {

class ConvertedModelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const absl::Status status = reference::WriteRandomModel(
        folder_.File("in.gguf"),
        {.architecture = GetParam(), .num_kv_heads = GetParam() == "opt" ? 4 : 2, .seed = 61});
    ASSERT_TRUE(status.ok()) << status;
  }
  std::string Convert(const std::string& from, const std::string& to, ConversionOptions options) {
    options.input_path = folder_.File(from);
    options.output_path = folder_.File(to);
    options.num_threads = 2;
    const auto report = ConvertModel(options);
    EXPECT_TRUE(report.ok()) << report.status();
    return options.output_path;
  }
  // Logits after a prompt and `steps` - 1 tokens of its continuation, on one thread so that every
  // sum has one order.
  static std::vector<float> Logits(const std::string& path, bool exact, double hot_share,
                                   size_t steps) {
    DeviceHarness harness(path, 1, hot_share, 3);
    harness.Greedy({5, 9, 80, 3, 3, 17, 42}, steps, exact);
    return harness.Logits();
  }

  TempFolder folder_;
};

TEST_P(ConvertedModelTest, ThePlainLayoutGivesTheSameBitsAsAllNeuronsOfTheSparseOne) {
  const std::string plain =
      Convert("in.gguf", "plain.gguf", {.container = Container::kGguf, .drop_predictors = true});
  const std::string back =
      Convert("plain.gguf", "back.gguf", {.container = Container::kPowerInfer});
  for (const double share : {0.0, 0.4}) {
    const std::vector<float> want = Logits(folder_.File("in.gguf"), /*exact=*/true, share, 4);
    EXPECT_EQ(Logits(plain, false, share, 4), want);
    EXPECT_EQ(Logits(back, false, share, 4), want);
  }
}

TEST_P(ConvertedModelTest, RequantisedWeightsStayCloseToTheModel) {
  const std::string q8 = Convert("in.gguf", "q8.gguf", {.type = DType::kQ8_0});
  const std::vector<float> want = Logits(folder_.File("in.gguf"), true, 0.4, 1);
  const std::vector<float> got = Logits(q8, true, 0.4, 1);
  ASSERT_EQ(got.size(), want.size());
  // Gaussian rows in blocks of 32 lose about 0.4 % of a weight, a few layers deep.
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i] - want[i]), 2);
    size += std::pow(static_cast<double>(want[i]), 2);
  }
  EXPECT_LT(std::sqrt(difference / size), 0.05);
  EXPECT_GT(difference, 0);
}

INSTANTIATE_TEST_SUITE_P(Architectures, ConvertedModelTest,
                         testing::Values("llama", "bamboo", "falcon", "opt"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace isotherm::gpu
