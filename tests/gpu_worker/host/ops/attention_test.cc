#include "gpu_worker/host/ops/attention.h"

#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include "common/tensor/half.h"
#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

// kv_len, head_dim, query heads of the group, bf16
using Shape = std::tuple<int64_t, int64_t, int64_t, bool>;

class AttentionTest : public testing::TestWithParam<Shape> {
 protected:
  static constexpr int64_t kKvHeads = 2, kPages = 12;
  void SetUp() override {
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    keys_.resize(static_cast<size_t>(kPages * kKvHeads * kPageSize * dim_));
    values_.resize(keys_.size());
    for (auto* values : {&keys_, &values_}) {
      for (uint16_t& v : *values) v = bf16_ ? F32ToBf16(normal(rng)) : F32ToF16(normal(rng));
    }
    q_.resize(static_cast<size_t>(heads_ * dim_));
    for (float& v : q_) v = normal(rng);
  }
  KvLayerView View() {
    return {.keys = keys_.data(),
            .values = values_.data(),
            .num_kv_heads = kKvHeads,
            .head_dim = dim_,
            .bf16 = bf16_};
  }
  double Widen(uint16_t bits) const { return bf16_ ? Bf16ToF32(bits) : F16ToF32(bits); }
  std::vector<float> Run(int64_t first, int64_t heads) {
    std::vector<float> out(static_cast<size_t>(heads * dim_), NAN);
    std::vector<float> scratch(static_cast<size_t>(AttendScratch(kv_len_, dim_)), NAN);
    Attend({.q = q_.data() + first * dim_,
            .num_heads = heads,
            .kv = View(),
            .kv_head = 1,
            .pages = pages_.data(),
            .kv_len = kv_len_,
            .scratch = scratch.data(),
            .out = out.data()});
    return out;
  }

  const int64_t kv_len_ = std::get<0>(GetParam()), dim_ = std::get<1>(GetParam()),
                heads_ = std::get<2>(GetParam());
  const bool bf16_ = std::get<3>(GetParam());
  const std::vector<int32_t> pages_ = {5, 2, 9, 0, 11, 7, 1};
  std::vector<uint16_t> keys_, values_;
  std::vector<float> q_;
};

TEST_P(AttentionTest, EqualsPlainSoftmaxOverThePages) {
  const std::vector<float> got = Run(0, heads_);
  for (int64_t h = 0; h < heads_; ++h) {
    std::vector<double> out(static_cast<size_t>(dim_), 0.0);
    double total = 0;
    for (int64_t t = 0; t < kv_len_; ++t) {
      const int64_t at =
          View().Offset(pages_[static_cast<size_t>(t / kPageSize)], 1, t % kPageSize);
      double dot = 0;
      for (int64_t i = 0; i < dim_; ++i)
        dot += static_cast<double>(q_[static_cast<size_t>(h * dim_ + i)]) *
               Widen(keys_[static_cast<size_t>(at + i)]);
      const double weight = std::exp(dot / std::sqrt(static_cast<double>(dim_)));
      total += weight;
      for (int64_t i = 0; i < dim_; ++i)
        out[static_cast<size_t>(i)] += weight * Widen(values_[static_cast<size_t>(at + i)]);
    }
    for (int64_t i = 0; i < dim_; ++i) {
      EXPECT_NEAR(got[static_cast<size_t>(h * dim_ + i)], out[static_cast<size_t>(i)] / total, 2e-5)
          << h << " " << i;
    }
  }
}

TEST_P(AttentionTest, GroupChangesNoBitOfAHead) {
  const std::vector<float> together = Run(0, heads_);
  for (int64_t h = 0; h < heads_; ++h) {
    const std::vector<float> alone = Run(h, 1);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + h * dim_)) << h;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Combine(testing::Values(1, 15, 16, 17, 100),
                                          testing::Values(6, 64, 80), testing::Values(1, 3, 8),
                                          testing::Bool()));

}  // namespace
}  // namespace isotherm::gpu
