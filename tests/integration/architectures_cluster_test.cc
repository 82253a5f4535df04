// Every architecture through the four processes: the tokens are those of one device that holds all
// neurons itself, whatever the transport and wherever neurons are computed. A bias that reached
// only one of the workers, or was added by both, would change them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <tuple>

#include "tests/gpu_worker/device_harness.h"
#include "tests/integration/cluster.h"
#include "tests/reference/random_model.h"

namespace isotherm::integration {
namespace {

// (architecture, transport)
class ArchitecturesClusterTest
    : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    const std::string architecture = std::get<0>(GetParam());
    path_ = testing::TempDir() + "/" + architecture + "-" + std::to_string(::getpid()) + ".gguf";
    const absl::Status status =
        reference::WriteRandomModel(path_, {.architecture = architecture,
                                            .num_kv_heads = architecture == "opt" ? 4 : 2,
                                            .second_norm = architecture == "falcon",
                                            .seed = 71});
    ASSERT_TRUE(status.ok()) << status;
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  std::string path_;
};

INSTANTIATE_TEST_SUITE_P(All, ArchitecturesClusterTest,
                         testing::Combine(testing::Values("llama", "bamboo", "falcon", "opt"),
                                          testing::Values("shm", "grpc")));

TEST_P(ArchitecturesClusterTest, TokensAreThoseOfOneDevice) {
  const std::vector<std::vector<int32_t>> prompts = {{5}, {2, 70, 31, 31, 8, 90, 44, 12, 3}};
  constexpr size_t kTokens = 24;
  std::vector<std::vector<int32_t>> wanted, wanted_exact;
  int64_t neuron_bytes = 0;
  {
    gpu::DeviceHarness harness(path_, 1);
    const BundleLayout& layout = harness.model().bundle_layout();
    neuron_bytes = layout.layer_bytes() * layout.num_layers;
    for (const auto& prompt : prompts) {
      wanted.push_back(harness.Greedy(prompt, kTokens));
      wanted_exact.push_back(harness.Greedy(prompt, kTokens, /*exact=*/true));
    }
  }
  for (const int per_cent : {0, 50, 100}) {
    Cluster cluster({.model = path_,
                     .transport = std::get<1>(GetParam()),
                     .budget = std::to_string(neuron_bytes * per_cent / 100)});
    ASSERT_TRUE(cluster.WaitReady());
    for (size_t i = 0; i < prompts.size(); ++i) {
      for (const bool exact : {false, true}) {
        const Answer answer =
            cluster.Generate(Cluster::Greedy(prompts[i], static_cast<int>(kTokens), exact));
        EXPECT_TRUE(answer.status.ok()) << answer.status.error_message() << cluster.Logs();
        EXPECT_EQ(answer.token_ids, exact ? wanted_exact[i] : wanted[i])
            << per_cent << " % hot, prompt " << i;
      }
    }
    EXPECT_TRUE(cluster.Stop());
  }
}

}  // namespace
}  // namespace isotherm::integration
