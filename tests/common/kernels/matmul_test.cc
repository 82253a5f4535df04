#include "common/kernels/matmul.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/kernels/kernel_test_util.h"
#include "tests/reference/matmul.h"

namespace isotherm {
namespace {

class MatMulTest : public testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }
  // The nearest length that the type can have.
  int64_t Columns(int64_t wanted) const { return RoundToBlock(wanted); }
  int64_t RoundToBlock(int64_t n) const {
    const int64_t block = Info(dtype()).block_elements;
    return (n + block - 1) / block * block;
  }
  ScopedTarget target_{std::get<0>(GetParam())};
  ThreadPool pool_{{.num_threads = 3, .name = "test"}};
};
INSTANTIATE_TEST_SUITE_P(TargetsAndTypes, MatMulTest,
                         testing::Combine(testing::ValuesIn(MachineTargets()),
                                          testing::ValuesIn(KernelTypes())),
                         TargetTypeName);

struct Case {
  Case(DType dtype, int64_t w_rows, int64_t columns, int64_t num_rows, int integer_limit,
       int shift = 0, int gap = 0)
      : w(dtype, w_rows, columns, integer_limit, 7, shift, gap) {
    params.x_stride = columns + 3;
    params.y_stride = w_rows + 2;
    RandomWeights random(11);
    for (int64_t i = 0; i < num_rows * params.x_stride; ++i)
      x.push_back(random.Value(integer_limit));
    if (num_rows > 0) x.resize(num_rows * params.x_stride - 3);
    y.assign(num_rows * params.y_stride, -77.0f);
    params.x = x.data();
    params.num_rows = num_rows;
    params.w = w.view;
    params.y = y.data();
  }
  OwnedMatrix w;
  std::vector<float> x, y;
  MatMulParams params;
};

TEST_P(MatMulTest, AgreesWithPlainLoopsOverRemaindersAndRowCounts) {
  for (const int64_t columns : {1, 15, 31, 33, 96, 417, 800}) {
    for (const auto& [w_rows, num_rows] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {5, 2}, {16, 3}, {19, 4}, {33, 5}, {7, 9}, {21, 50}}) {
      Case c(dtype(), w_rows, Columns(columns), num_rows, 0, columns % 3, columns % 2);
      ASSERT_TRUE(MatMul(c.params, pool_).ok());
      const reference::Products want = reference::MatMul(c.params);
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t n = 0; n < w_rows; ++n) {
          // n roundings of 2^-24 of a partial sum no larger than the sum of magnitudes.
          const double bound =
              std::ldexp(want.magnitudes[r * w_rows + n] * (c.params.w.columns + 1), -24);
          ASSERT_NEAR(c.y[r * c.params.y_stride + n], want.sums[r * w_rows + n], bound)
              << "columns=" << columns << " row=" << r << " neuron=" << n;
        }
        ASSERT_EQ(c.y[r * c.params.y_stride + w_rows], -77.0f) << "wrote past the row";
      }
    }
  }
}

TEST_P(MatMulTest, IntegersAreExactInAnySplitAndOnAnyThreads) {
  for (const int64_t num_rows : {1, 4, 61}) {
    Case c(dtype(), 130, Columns(580), num_rows, 3);
    const reference::Products want = reference::MatMul(c.params);
    const auto check = [&] {
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t n = 0; n < 130; ++n) {
          ASSERT_EQ(c.y[r * c.params.y_stride + n], want.sums[r * 130 + n]);
        }
      }
    };
    ASSERT_TRUE(MatMul(c.params, pool_).ok());
    check();
    for (const int64_t piece : {1, 7, 16, 100}) {
      std::fill(c.y.begin(), c.y.end(), 0.0f);
      for (int64_t n = 0; n < 130; n += piece)
        MatMulRows(c.params, n, std::min<int64_t>(130, n + piece));
      check();
    }
  }
}

TEST_P(MatMulTest, BitsOfARowDoNotDependOnTheBatchItIsIn) {
  const int64_t columns = Columns(801);
  Case all(dtype(), 37, columns, 55, 0);
  ASSERT_TRUE(MatMul(all.params, pool_).ok());
  for (const int64_t batch : {1, 2, 3, 4, 6, 7}) {
    for (int64_t r = 0; r + batch <= 55; r += batch) {
      std::vector<float> y(batch * 37);
      MatMulParams part = all.params;
      part.x += r * part.x_stride;
      part.num_rows = batch;
      part.y = y.data();
      part.y_stride = 37;
      ASSERT_TRUE(MatMul(part, pool_).ok());
      for (int64_t i = 0; i < batch; ++i) {
        ASSERT_EQ(std::memcmp(&y[i * 37], &all.y[(r + i) * all.params.y_stride], 37 * 4), 0)
            << "batch " << batch << " row " << r + i;
      }
    }
  }
}

TEST_P(MatMulTest, AccumulatesOntoWhatYHolds) {
  for (const int64_t num_rows : {1, 8}) {
    Case c(dtype(), 9, Columns(64), num_rows, 2);
    c.params.accumulate = true;
    ASSERT_TRUE(MatMul(c.params, pool_).ok());
    const reference::Products want = reference::MatMul(c.params);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t n = 0; n < 9; ++n) {
        ASSERT_EQ(c.y[r * c.params.y_stride + n], want.sums[r * 9 + n] - 77);
      }
    }
  }
}

TEST_P(MatMulTest, DoesNothingForZeroRows) {
  Case no_x(dtype(), 4, Columns(32), 0, 0);
  EXPECT_TRUE(MatMul(no_x.params, pool_).ok());
  Case no_w(dtype(), 0, Columns(32), 2, 0);
  EXPECT_TRUE(MatMul(no_w.params, pool_).ok());
  EXPECT_THAT(no_w.y, testing::Each(-77.0f));
}

TEST(MatMulValidationTest, RefusesShapesThatDisagree) {
  const auto refused = [](auto change) {
    Case c(DType::kQ8_0, 4, 64, 2, 0);
    change(c.params);
    ThreadPool pool({.num_threads = 1});
    const absl::Status status = MatMul(c.params, pool);
    return status.code() == absl::StatusCode::kInvalidArgument && !status.message().empty();
  };
  EXPECT_TRUE(refused([](MatMulParams& p) { p.x_stride = 63; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.y_stride = 3; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.num_rows = -1; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.x = nullptr; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.w.columns = 48; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.w.row_bytes = 67; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.w.data = nullptr; }));
  EXPECT_TRUE(refused([](MatMulParams& p) { p.w.dtype = DType::kQ4_1; }));
}

}  // namespace
}  // namespace isotherm
