// Random models through a device backend, against plain double loops.
#include <unistd.h>

#include <cmath>

#include "tests/gpu_worker/device_harness.h"
#include "tests/reference/model_reference.h"
#include "tests/reference/random_model.h"

namespace isotherm::gpu {
namespace {

using reference::ModelReference;
using reference::RandomModelOptions;

struct Case {
  std::string name;
  RandomModelOptions options;
  bool exact = false;
  ModelOptions model = {};
};

void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

// Both sides round normed inputs, keys and values to 16 bits; a difference in the last bit of an
// F32 sum may round one of them the other way: 2^-11 of it (BF16: 2^-8), over a few layers.
double Tolerance(DType dtype) { return dtype == DType::kBF16 ? 0.04 : 0.005; }

class ReferenceModelTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { ISOTHERM_SKIP_WITHOUT_DEVICE(); }
  static std::string Write(const RandomModelOptions& options) {
    const std::string path = testing::TempDir() + "/random-" + std::to_string(options.seed) + "-" +
                             std::to_string(::getpid()) + ".gguf";
    const absl::Status status = reference::WriteRandomModel(path, options);
    EXPECT_TRUE(status.ok()) << status;
    return path;
  }
  static std::vector<TokenId> Prompt(int64_t length, int64_t vocab_size, uint64_t seed) {
    std::mt19937_64 rng(seed);
    std::vector<TokenId> out;
    for (int64_t i = 0; i < length; ++i)
      out.push_back(static_cast<TokenId>(rng() % static_cast<uint64_t>(vocab_size)));
    return out;
  }
  // A prompt none of whose scores is so near the threshold that rounding could flip it: with scores
  // of size 1 and 480 of them a token, one in seven prompts of five tokens.
  static std::vector<TokenId> WidePrompt(const std::string& path, int64_t vocab_size) {
    const auto model = ModelFile::Open(path);
    EXPECT_TRUE(model.ok()) << model.status();
    for (uint64_t seed = 1; seed < 500; ++seed) {
      std::vector<TokenId> prompt = Prompt(5, vocab_size, seed);
      if (ModelReference(**model).Forward(prompt, false).narrowest > 1e-3) return prompt;
    }
    ADD_FAILURE() << "every prompt has a score within 1e-3 of the threshold";
    return {};
  }
  // Logits of every row, all rows of one sequence in one step.
  static std::vector<float> Logits(DeviceHarness& harness, const std::vector<TokenId>& tokens,
                                   bool exact) {
    std::vector<SamplingState> states(tokens.size(), SamplingState({.params = {.temperature = 0}}));
    const std::vector<int32_t> pages = {7, 3, 11, 2};
    std::vector<DeviceRow> rows;
    for (size_t i = 0; i < tokens.size(); ++i) {
      rows.push_back({.token = tokens[i],
                      .position = static_cast<int32_t>(i),
                      .pages = pages,
                      .exact = exact,
                      .sampling = &states[i]});
    }
    harness.Run(rows);
    return harness.Logits();
  }
};

TEST_P(ReferenceModelTest, LogitsEqualPlainLoopsUnderEveryPlacement) {
  const RandomModelOptions& options = GetParam().options;
  const std::string path = Write(options);
  const bool predicted = options.sparse && !GetParam().exact;
  const std::vector<TokenId> prompt =
      predicted ? WidePrompt(path, options.vocab_size) : Prompt(41, options.vocab_size, 5);
  for (const double share : {0.0, 0.3, 1.0}) {
    DeviceHarness harness(path, 3, share, 9, GetParam().model);
    const ModelReference::Result want =
        ModelReference(harness.model()).Forward(prompt, GetParam().exact);
    const std::vector<float> got = Logits(harness, prompt, GetParam().exact);
    ASSERT_EQ(got.size(), prompt.size() * static_cast<size_t>(options.vocab_size));
    double difference = 0, size = 0;
    for (size_t r = 0; r < want.logits.size(); ++r) {
      for (size_t i = 0; i < want.logits[r].size(); ++i) {
        const double logit = static_cast<double>(got[r * want.logits[r].size() + i]);
        difference = std::max(difference, std::abs(want.logits[r][i] - logit));
        size = std::max(size, std::abs(want.logits[r][i]));
      }
    }
    EXPECT_LT(difference, Tolerance(options.dtype) * size) << "hot share " << share;
    EXPECT_EQ(harness.output().active_neurons, want.active) << "narrowest " << want.narrowest;
    if (share == 0.0 || share == 1.0) {
      EXPECT_EQ(harness.output().hot_neurons, share == 0.0 ? 0 : want.active);
    }
  }
}

TEST_P(ReferenceModelTest, ChunksAndBatchMatesChangeNoBitOfARow) {
  if (TestedDevice::kCuda) GTEST_SKIP() << "a CUDA batch's sums are ordered by its size";
  // One thread: the neurons' partial sums then have one order, too.
  const RandomModelOptions& options = GetParam().options;
  DeviceHarness harness(Write(options), 1, 0.4, 1, GetParam().model);
  const std::vector<TokenId> prompt = Prompt(37, options.vocab_size, 6);
  const std::vector<TokenId> whole = harness.Greedy(prompt, 12, GetParam().exact, 64);
  const std::vector<float> last = harness.Logits();
  for (const size_t chunk : {1, 5, 16, 17}) {
    EXPECT_EQ(harness.Greedy(prompt, 12, GetParam().exact, chunk), whole) << chunk;
    EXPECT_EQ(harness.Logits(), last) << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, ReferenceModelTest,
    testing::Values(Case{"sparse", {.seed = 21}}, Case{"sparse_exact", {.seed = 22}, true},
                    Case{"sparse_bf16", {.dtype = DType::kBF16, .seed = 23}, true},
                    Case{"sparse_q8_tied", {.tied = true, .dtype = DType::kQ8_0, .seed = 24}},
                    Case{"dense_silu", {.sparse = false, .seed = 25}},
                    Case{"dense_q4_one_kv_head",
                         {.ffn_dim = 192,
                          .num_q_heads = 8,
                          .num_kv_heads = 1,
                          .sparse = false,
                          .dtype = DType::kQ4_0,
                          .seed = 26}},
                    Case{"no_groups", {.num_q_heads = 2, .num_kv_heads = 2, .seed = 27}},
                    Case{"dense_relu",
                         {.sparse = false, .seed = 28},
                         false,
                         {.activation = Activation::kRelu}}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Bamboo, ReferenceModelTest,
    testing::Values(
        Case{"sparse", {.architecture = "bamboo", .seed = 31}},
        Case{"exact_bf16", {.architecture = "bamboo", .dtype = DType::kBF16, .seed = 32}, true},
        Case{"dense_q8",
             {.architecture = "bamboo", .sparse = false, .dtype = DType::kQ8_0, .seed = 33}}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Falcon, ReferenceModelTest,
    testing::Values(Case{"one_kv_head", {.architecture = "falcon", .num_kv_heads = 1, .seed = 41}},
                    Case{"two_norms",
                         {.architecture = "falcon",
                          .num_q_heads = 8,
                          .num_kv_heads = 2,
                          .second_norm = true,
                          .seed = 42}},
                    Case{"exact_tied_q4",
                         {.architecture = "falcon",
                          .ffn_dim = 192,
                          .tied = true,
                          .dtype = DType::kQ4_0,
                          .seed = 43},
                         true},
                    Case{"half_a_head_rotated_bf16",
                         {.architecture = "falcon",
                          .num_q_heads = 2,
                          .num_kv_heads = 1,
                          .rope_dims = 16,
                          .second_norm = true,
                          .dtype = DType::kBF16,
                          .seed = 44},
                         true},
                    // Heads that are no multiple of a product's tile.
                    Case{"odd_heads",
                         {.architecture = "falcon",
                          .model_dim = 96,
                          .num_q_heads = 4,
                          .num_kv_heads = 2,
                          .seed = 45}},
                    Case{"dense_gelu", {.architecture = "falcon", .sparse = false, .seed = 46}},
                    Case{"dense_relu",
                         {.architecture = "falcon", .sparse = false, .seed = 47},
                         false,
                         {.activation = Activation::kRelu}}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Opt, ReferenceModelTest,
    testing::Values(
        Case{"sparse", {.architecture = "opt", .num_kv_heads = 4, .seed = 51}},
        Case{"exact_bf16",
             {.architecture = "opt", .num_kv_heads = 4, .dtype = DType::kBF16, .seed = 52},
             true},
        Case{"sparse_q8",
             {.architecture = "opt", .num_kv_heads = 4, .dtype = DType::kQ8_0, .seed = 53}},
        Case{"dense", {.architecture = "opt", .num_kv_heads = 4, .sparse = false, .seed = 54}}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace isotherm::gpu
