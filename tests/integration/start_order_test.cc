// The four processes find each other whatever the order they come up in.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/integration/integer_model_file.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

using Order = std::vector<std::string>;

std::vector<Order> AllOrders() {
  Order order = {"cpu-worker", "gateway", "gpu-worker", "placement"};
  std::vector<Order> all;
  do {
    all.push_back(order);
  } while (std::next_permutation(order.begin(), order.end()));
  return all;
}

class StartOrderTest : public testing::TestWithParam<Order> {
 protected:
  static const IntegerModelFile& model() {
    static const IntegerModelFile file(81);
    return file;
  }
};

INSTANTIATE_TEST_SUITE_P(EveryCommit, StartOrderTest,
                         testing::Values(Order{"gateway", "placement", "gpu-worker", "cpu-worker"},
                                         Order{"cpu-worker", "gpu-worker", "placement", "gateway"},
                                         Order{"gpu-worker", "gateway", "cpu-worker", "placement"},
                                         Order{"placement", "cpu-worker", "gateway",
                                               "gpu-worker"}));
INSTANTIATE_TEST_SUITE_P(Nightly, StartOrderTest, testing::ValuesIn(AllOrders()));

TEST_P(StartOrderTest, ConvergesInTenSeconds) {
  Cluster cluster({.model = model().path(), .start_order = GetParam()});
  ASSERT_TRUE(cluster.WaitReady(seconds(10)));
  ExpectGolden(cluster, model().Requests(1, 60)[0]);
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
