#include "gateway/scheduling/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace isotherm {
namespace {

using testing::ElementsAre;

TEST(PagePoolTest, TakesTheLowestFirstAndAllOrNothing) {
  PagePool pool(4);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(pool.Take(2, a));
  EXPECT_THAT(a, ElementsAre(0, 1));
  EXPECT_FALSE(pool.Take(3, b));
  EXPECT_TRUE(b.empty());
  EXPECT_TRUE(pool.Take(1, b));
  pool.Return(a);
  EXPECT_TRUE(pool.Take(1, b));
  EXPECT_THAT(b, ElementsAre(2, 0));
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.total(), 4);
}

TEST(PagePoolTest, TheLimitGrowsAtOnceAndShrinksAsPagesComeBack) {
  PagePool pool(8, 2);
  std::vector<int32_t> a, b;
  EXPECT_EQ(pool.total(), 2);
  EXPECT_FALSE(pool.Take(3, a));
  pool.SetLimit(6);
  EXPECT_TRUE(pool.Take(3, a));
  EXPECT_TRUE(pool.Take(2, b));
  EXPECT_EQ(pool.top(), 6);
  pool.SetLimit(4);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.total(), 5);  // one above the limit is held still
  EXPECT_EQ(pool.top(), 5);
  pool.Return(b);  // 3 and 4
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.top(), 4);
  EXPECT_EQ(pool.most(), 8);
  pool.SetLimit(100);
  EXPECT_EQ(pool.top(), 8);
  EXPECT_EQ(pool.free(), 5);
}

TEST(PagePoolTest, KeepsCountThroughRandomTakesReturnsAndLimits) {
  std::mt19937 random(2);
  PagePool pool(32, 16);
  int32_t limit = 16;
  std::vector<std::vector<int32_t>> held;
  for (int i = 0; i < 5'000; ++i) {
    if (random() % 3 == 0) {
      std::vector<int32_t> pages;
      if (pool.Take(static_cast<int32_t>(random() % 6), pages)) {
        for (const int32_t page : pages) ASSERT_LT(page, limit);
        held.push_back(pages);
      }
    } else if (random() % 2 == 0 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      pool.Return(held.back());
      held.pop_back();
    } else if (random() % 4 == 0) {
      limit = static_cast<int32_t>(random() % 33);
      pool.SetLimit(limit);
    }
    std::set<int32_t> all;
    size_t count = 0;
    for (const auto& pages : held) {
      all.insert(pages.begin(), pages.end());
      count += pages.size();
    }
    ASSERT_EQ(all.size(), count);  // nobody's page is another's
    ASSERT_EQ(pool.total(), pool.free() + static_cast<int32_t>(count));
    ASSERT_GE(pool.top(), all.empty() ? 0 : *all.rbegin() + 1);
    ASSERT_GE(pool.top(), limit);
    const auto above = std::distance(all.lower_bound(limit), all.end());
    ASSERT_EQ(pool.total(), limit + static_cast<int32_t>(above));
  }
}

}  // namespace
}  // namespace isotherm
