#include "gpu_worker/engine/kv_lease.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/fakes/fake_clock.h"

namespace isotherm::gpu {
namespace {

using std::chrono::seconds;

// Pages of 10 bytes: 100 for hot neurons at the floor of 20 pages, at least 40 kept.
constexpr KvLeaseOptions kOptions{.budget_bytes = 300,
                                  .page_bytes = 10,
                                  .floor_pages = 20,
                                  .most_pages = 100,
                                  .hot_floor_bytes = 40,
                                  .chunk_pages = 4,
                                  .hold = seconds(30)};

class KvLeaseTest : public testing::Test {
 protected:
  void Update(int64_t hot_used) { lease_.Update(hot_used, clock_.Now()); }

  FakeClock clock_;
  KvLease lease_{kOptions};
};

TEST_F(KvLeaseTest, WithinTheFloorNothingIsLent) {
  EXPECT_EQ(lease_.pages(), 20);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 100);
  EXPECT_EQ(lease_.most_pages(), 26);
  lease_.OnDemand(20, 20);
  Update(100);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 100);
}

TEST_F(KvLeaseTest, PagesComeOnceHotNeuronsHaveLeftThem) {
  lease_.OnDemand(22, 20);
  Update(100);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 60);  // a chunk of four is asked back
  EXPECT_EQ(lease_.pages(), 20);
  Update(100);
  EXPECT_EQ(lease_.pages(), 20);
  Update(80);
  EXPECT_EQ(lease_.pages(), 22);
  Update(60);
  EXPECT_EQ(lease_.pages(), 24);
}

TEST_F(KvLeaseTest, HotNeuronsKeepTheirFloor) {
  lease_.OnDemand(1'000'000, 20);
  Update(100);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 40);
  Update(40);
  EXPECT_EQ(lease_.pages(), 26);
}

TEST_F(KvLeaseTest, WhatNobodyWantedForAWhileGoesBack) {
  lease_.OnDemand(26, 20);
  Update(100);
  Update(40);
  ASSERT_EQ(lease_.pages(), 26);
  lease_.OnDemand(0, 26);
  clock_.Advance(seconds(1));
  Update(40);
  clock_.Advance(seconds(20));
  lease_.OnDemand(23, 26);  // wanted again in between
  Update(40);
  EXPECT_EQ(lease_.pages(), 26);
  lease_.OnDemand(0, 26);
  clock_.Advance(seconds(10));
  Update(40);
  EXPECT_EQ(lease_.pages(), 24);  // the most of that time
  // The gateway may not know yet, or hold a page up there: its bytes are not lent twice.
  EXPECT_EQ(lease_.pages_taken(), 26);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 40);
  lease_.OnDemand(0, 24);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 60);
  clock_.Advance(seconds(1));
  Update(40);
  clock_.Advance(seconds(30));
  Update(40);
  EXPECT_EQ(lease_.pages(), 20);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 60);
  lease_.OnDemand(0, 20);
  EXPECT_EQ(lease_.hot_capacity_bytes(), 100);
}

TEST_F(KvLeaseTest, TheyNeverTakeMoreThanTheBudgetTogether) {
  std::mt19937 random(9);
  int64_t hot_used = 100;
  int32_t known = 20;  // the gateway's limit: hellos reach it late
  int32_t held = 0;    // it holds no page from here on
  int lent = 0;
  for (int i = 0; i < 20'000; ++i) {
    clock_.Advance(seconds(random() % 5));
    if (random() % 3 == 0) known = lease_.pages();
    if (random() % 3 == 0) {
      held = static_cast<int32_t>(random() % static_cast<uint32_t>(known + 1));
    }
    if (random() % 3 == 0) {
      const bool many = random() % 12 == 0;
      lease_.OnDemand(static_cast<int32_t>(random() % (many ? 40 : 20)), std::max(known, held));
    }
    Update(hot_used);
    // A plan follows the capacity: at once where it shrinks, some time where it grows.
    if (random() % 2 == 0) hot_used = lease_.hot_capacity_bytes();
    ASSERT_GE(lease_.pages(), 20);
    ASSERT_LE(lease_.pages_taken(), 26);
    ASSERT_LE(std::max(known, held), lease_.pages_taken());  // what it may name is there
    ASSERT_GE(lease_.hot_capacity_bytes(), 40);
    ASSERT_LE(10 * lease_.pages_taken() + lease_.hot_capacity_bytes(), 300);
    ASSERT_LE(10 * lease_.pages_taken() + hot_used, 300);
    lent += lease_.pages() > 20 ? 1 : 0;
  }
  EXPECT_GT(lent, 1'000);
  EXPECT_LT(lent, 19'000);
}

}  // namespace
}  // namespace isotherm::gpu
