// KV pages and hot neurons trade memory while requests run: what more sequences need is lent by the
// hot set, and goes back when nobody wants it any more. No request is dropped and no token changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <string>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

class MemoryShareClusterTest : public testing::Test {
 protected:
  // A page has 8 KiB, a sequence of the whole context eight of them: those are always there. Hot
  // neurons keep half of their 256 KiB, so that 16 further pages can be lent.
  MemoryShareClusterTest()
      : cluster_({.model = model_.path(),
                  .budget = std::to_string(kAllNeuronBytes),
                  .gpu_flags = {"--context", "128", "--parallel", "16", "--kv-floor", "0",
                                "--kv-hold-ms", "500", "--poison-freed"}}) {}
  void SetUp() override {
    const char* const device = std::getenv("ISOTHERM_TEST_DEVICE");
    if (device != nullptr && std::string(device) != "cpu") {
      GTEST_SKIP() << "KV pages are fixed on this device";
    }
  }

  int64_t Capacity() {
    const auto described = cluster_.Describe("gpu-worker");
    EXPECT_TRUE(described.has_value());
    return described ? described->capacity_bytes() : 0;
  }
  int64_t HotBytes() {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(5));
    v1::GetPlacementResponse response;
    const grpc::Status status =
        cluster_.Placement()->GetPlacement(&context, v1::GetPlacementRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.plan().used_bytes();
  }

  const IntegerModelFile model_{91};
  Cluster cluster_;
};

TEST_F(MemoryShareClusterTest, HotNeuronsLendPagesAndGetThemBack) {
  ASSERT_TRUE(cluster_.WaitReady());
  ASSERT_EQ(Capacity(), kAllNeuronBytes);
  ASSERT_EQ(HotBytes(), kAllNeuronBytes);
  for (int round = 0; round < 2; ++round) {
    {
      ClientLoad load(cluster_, model_.Requests(8, 85), 4);
      ASSERT_TRUE(Eventually(seconds(30), [&] { return Capacity() == kAllNeuronBytes / 2; }))
          << Capacity() << "\n"
          << cluster_.Logs();
      ASSERT_TRUE(Eventually(seconds(30), [&] { return HotBytes() <= kAllNeuronBytes / 2; }))
          << cluster_.Logs();
      EXPECT_TRUE(Eventually(seconds(30), [&] {
        return cluster_.process("gateway").Log().find("24 KV pages now") != std::string::npos;
      })) << cluster_.Logs();
      ASSERT_TRUE(load.WaitForTokens(1'000)) << cluster_.Logs();
      const ClientLoad::Counts counts = load.Stop();
      EXPECT_EQ(counts.failed, 0) << counts.first_error;
      EXPECT_GT(counts.finished, 4);
    }
    EXPECT_TRUE(
        Eventually(seconds(30),
                   [&] { return Capacity() == kAllNeuronBytes && HotBytes() == kAllNeuronBytes; }))
        << Capacity() << "\n"
        << cluster_.Logs();
    ExpectGolden(cluster_, model_.Requests(1, 85)[0]);
  }
  EXPECT_TRUE(cluster_.Stop());
}

TEST_F(MemoryShareClusterTest, WithoutThePlacementServiceRequestsTakeTurns) {
  ASSERT_TRUE(cluster_.WaitReady());
  cluster_.Kill("placement", SIGKILL);
  // Nobody shrinks the hot set, so that no page is lent: what does not fit waits, or is run anew.
  ClientLoad load(cluster_, model_.Requests(8, 85), 4);
  ASSERT_TRUE(load.WaitForTokens(1'000)) << cluster_.Logs();
  EXPECT_THAT(cluster_.process("gateway").Log(), testing::Not(HasSubstr("KV pages now")));
  cluster_.Start("placement");
  EXPECT_TRUE(Eventually(seconds(30), [&] {
    return cluster_.process("gateway").Log().find("24 KV pages now") != std::string::npos;
  })) << cluster_.Logs();
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 4);
  EXPECT_TRUE(cluster_.Stop());
}

}  // namespace
}  // namespace isotherm::integration
