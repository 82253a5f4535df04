// The solver against a linear-programming solver (HiGHS) on instances too large for brute force: a
// plan takes no less time than the optimum with neurons split, and at most a neuron a layer more.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "placement_service/solver/solve_placement.h"

namespace isotherm {
namespace {

// `./check` makes an environment with highspy in the build folder.
std::string Python() {
  if (const char* path = std::getenv("ISOTHERM_TEST_PYTHON"); path != nullptr) return path;
  const std::string built = std::string(ISOTHERM_BINARY_DIR) + "/test-python/bin/python3";
  return std::filesystem::exists(built) ? built : "python3";
}

struct Instance {
  std::vector<LayerGeometry> layers;
  std::vector<std::vector<float>> reads;
  std::vector<SolveBin> bins;
  std::vector<SolveNode> nodes;

  SolveInput input() const { return {layers, reads, bins, reads, nodes}; }
  double OneNeuronEach() const {
    double sum = 0;
    for (const std::vector<float>& layer : reads) {
      double factor = 1;
      for (const SolveNode& node : nodes) factor = std::max(factor, node.cost_factor);
      sum += *std::max_element(layer.begin(), layer.end()) *
             std::max(bins[0].cold_per_byte * factor, bins[0].hot_per_byte);
    }
    return sum;
  }
  nlohmann::json ToJson() const {
    nlohmann::json out = {{"reads", reads},
                          {"bundle_bytes", layers[0].bundle_bytes},
                          {"budget_bytes", bins[0].budget_bytes},
                          {"costs",
                           {{"cold_fixed", bins[0].cold_fixed},
                            {"cold_per_byte", bins[0].cold_per_byte},
                            {"hot_fixed", bins[0].hot_fixed},
                            {"hot_per_byte", bins[0].hot_per_byte}}}};
    out["nodes"] = nlohmann::json::array();
    for (const SolveNode& node : nodes) out["nodes"].push_back({node.share_end, node.cost_factor});
    if (nodes.empty()) out["nodes"].push_back({1, 1});
    return out;
  }
};

std::vector<Instance> Instances() {
  std::mt19937 engine(11);
  std::uniform_real_distribution<double> unit(0, 1);
  std::exponential_distribution<float> gap(2.0f);
  std::vector<Instance> out;
  for (int i = 0; i < 40; ++i) {
    Instance instance;
    int64_t all = 0;
    for (int l = 0; l < 4 + i % 5; ++l) {
      instance.layers.push_back({20 + static_cast<int64_t>(engine() % 150), 12});
      all += instance.layers.back().num_neurons * 12;
      std::vector<float> reads;
      const float scale = 12.0f * static_cast<float>(0.2 + unit(engine));
      for (int64_t n = 0; n < instance.layers.back().num_neurons; ++n) {
        reads.push_back(scale * std::min(1.0f, gap(engine)));
      }
      instance.reads.push_back(std::move(reads));
    }
    instance.bins = {{.budget_bytes = static_cast<int64_t>(unit(engine) * static_cast<double>(all)),
                      .cold_fixed = 30 * unit(engine),
                      .cold_per_byte = 0.5 + unit(engine),
                      // One third of the instances has no balance point.
                      .hot_per_byte = i % 3 == 0 ? 0.0 : 0.6 * unit(engine)}};
    // Layers gain nothing by being whole: that part is not linear.
    instance.bins[0].hot_fixed = instance.bins[0].cold_fixed;
    // With several nodes the hot side's bytes are not fixed by the gain, so no balance points then.
    if (i % 3 == 0 && i % 2 == 0) instance.nodes = {{0.4, 1}, {0.7, 1.3}, {1, 0.8}};
    out.push_back(std::move(instance));
  }
  return out;
}

TEST(SolveLpTest, IsWithinANeuronALayerOfTheLinearOptimum) {
  const std::vector<Instance> instances = Instances();
  nlohmann::json questions = nlohmann::json::array();
  for (const Instance& instance : instances) questions.push_back(instance.ToJson());
  std::string folder = testing::TempDir() + "/solve_lp_XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  std::ofstream(folder + "/instances.json") << questions;
  const std::string command =
      "'" + Python() + "' '" ISOTHERM_SOURCE_DIR "/tests/placement_service/solver/lp_bound.py' '" +
      folder + "/instances.json' '" + folder + "/optima.json'";
  const int status = std::system(command.c_str());
  ASSERT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 77)
      << Python() << " has no highspy: `pip install highspy`, or let ./check make "
      << ISOTHERM_BINARY_DIR "/test-python";
  ASSERT_EQ(status, 0) << command;
  const std::vector<double> optima =
      nlohmann::json::parse(std::ifstream(folder + "/optima.json")).get<std::vector<double>>();
  std::filesystem::remove_all(folder);
  ASSERT_EQ(optima.size(), instances.size());
  for (size_t i = 0; i < instances.size(); ++i) {
    const auto plan = SolvePlacement(instances[i].input());
    ASSERT_TRUE(plan.ok()) << plan.status();
    const double slack = 1e-5 * optima[i] + 1e-6;
    EXPECT_GE(plan->predicted_ns, optima[i] - slack) << i;
    EXPECT_LE(plan->predicted_ns, optima[i] + instances[i].OneNeuronEach() + slack) << i;
    // The relaxation's value is no more than the linear optimum, and close to it.
    EXPECT_GE(plan->bound_ns, 0.999 * optima[i] - slack) << i;
    const double most = instances[i].nodes.empty() ? optima[i] + slack : plan->predicted_ns;
    EXPECT_LE(plan->bound_ns, most) << i;
  }
}

}  // namespace
}  // namespace isotherm
