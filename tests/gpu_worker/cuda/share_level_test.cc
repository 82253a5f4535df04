#include "gpu_worker/cuda/share_level.h"

#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

// A layer whose neurons are needed by 1 to `rows` rows, few by many.
class Layer {
 public:
  Layer(int neurons, int rows) : rows_(rows) {
    std::mt19937_64 random(5);
    std::uniform_real_distribution<double> uniform(0, 1);
    for (int n = 0; n < neurons; ++n) {
      const double often = uniform(random) * uniform(random);
      counts_.push_back(1 + static_cast<int>(often * (rows - 1)));
    }
  }
  // Times of the cpu side and of this side's reading.
  std::pair<double, double> Times(double level, double us_a_row) const {
    const int whole = static_cast<int>(level);
    double cpu = 0, streamed = 0;
    for (size_t n = 0; n < counts_.size(); ++n) {
      const bool to_cpu =
          counts_[n] < whole ||
          (counts_[n] == whole &&
           static_cast<double>(n) < (level - whole) * static_cast<double>(counts_.size()));
      (to_cpu ? cpu : streamed) += to_cpu ? 0.25 + us_a_row * counts_[n] : 0.5;
    }
    return {cpu, streamed};
  }
  int rows() const { return rows_; }

 private:
  const int rows_;
  std::vector<int> counts_;
};

TEST(ShareLevelTest, EndsWhereBothSidesEndTogetherThoughItsAnswersAreLate) {
  for (const int rows : {8, 16, 73, 256}) {
    for (const double us_a_row : {0.01, 0.1, 0.5}) {
      const Layer layer(8000, rows);
      ShareLevel level(0.15);
      std::vector<std::pair<double, double>> late;
      for (int l = 0; l < 160; ++l) {
        late.push_back(layer.Times(level.level(rows), us_a_row));
        if (l >= 2) level.Observe(late[late.size() - 3].first, late[late.size() - 3].second);
      }
      const auto [cpu, streamed] = layer.Times(level.level(rows), us_a_row);
      EXPECT_NEAR(cpu / streamed, 1, 0.15) << rows << " rows, " << us_a_row << " us a row";
    }
  }
}

TEST(ShareLevelTest, TheCpuSideAlwaysGetsSomethingToLearnFrom) {
  ShareLevel level(0.15);
  for (int i = 0; i < 200; ++i) level.Observe(1e6, 1);
  for (const int rows : {8, 256}) {
    EXPECT_GT(level.level(rows), 1.0);
    EXPECT_LT(level.level(rows), 1.3);
  }
  for (int i = 0; i < 200; ++i) level.Observe(1, 1e6);
  EXPECT_EQ(level.share(), 1.0);
}

TEST(ShareLevelTest, NothingIsLearntWithoutTwoSides) {
  ShareLevel level(0.15);
  level.Observe(0, 5);
  level.Observe(5, 0);
  level.Observe(-1, 5);
  EXPECT_EQ(level.share(), 0.15);
}

}  // namespace
}  // namespace isotherm::gpu
