// A worker stands still (SIGSTOP) under load and goes on later. Nobody waits for a cpu_worker that
// does not answer: the gpu_worker has its arena and takes over. What the late one writes is not
// read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "absl/strings/str_split.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

class WorkerStallTest : public testing::Test {
 protected:
  // How often the gpu_worker found its cpu_worker, as it logs.
  int Attachments() {
    return static_cast<int>(
               std::vector<std::string>(absl::StrSplit(cluster_.process("gpu-worker").Log(),
                                                       "attached to the cpu_worker"))
                   .size()) -
           1;
  }

  const IntegerModelFile model_{41};
  Cluster cluster_{{.model = model_.path(), .budget = "128KiB"}};
};

TEST_F(WorkerStallTest, TokensGoOnWhileTheCpuWorkerStandsStill) {
  ASSERT_TRUE(cluster_.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(6, 60);
  ClientLoad load(cluster_, requests, 3);
  for (int stall = 0; stall < 3; ++stall) {
    ASSERT_TRUE(load.WaitForTokens(100)) << cluster_.Logs();
    const int attachments = Attachments();
    cluster_.Kill("cpu-worker", SIGSTOP);
    const auto start = std::chrono::steady_clock::now();
    // At least one of them was computed after the stop: the three clients have 180 at most on their
    // way.
    EXPECT_TRUE(load.WaitForTokens(200)) << cluster_.Logs();
    RecordProperty("tokens_after_ms_" + std::to_string(stall),
                   static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                        std::chrono::steady_clock::now() - start)
                                        .count()));
    cluster_.Kill("cpu-worker", SIGCONT);
    EXPECT_TRUE(Eventually(seconds(10), [&] { return Attachments() > attachments; }))
        << cluster_.Logs();
  }
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_GT(counts.finished, 0);
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  ExpectGolden(cluster_, requests[1]);
  EXPECT_TRUE(cluster_.Stop());
}

TEST_F(WorkerStallTest, AGpuWorkerThatStoodStillGoesOn) {
  ASSERT_TRUE(cluster_.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(6, 60);
  ClientLoad load(cluster_, requests, 3);
  ASSERT_TRUE(load.WaitForTokens(100)) << cluster_.Logs();
  cluster_.Kill("gpu-worker", SIGSTOP);
  // Long enough that the cpu_worker gives the attachment up.
  EXPECT_FALSE(load.WaitForTokens(1000, std::chrono::milliseconds(600)));
  cluster_.Kill("gpu-worker", SIGCONT);
  EXPECT_TRUE(load.WaitForTokens(200)) << cluster_.Logs();
  load.Stop();
  EXPECT_TRUE(GoldenWithin(cluster_, requests[0], seconds(5))) << cluster_.Logs();
  EXPECT_TRUE(cluster_.Stop());
}

}  // namespace
}  // namespace isotherm::integration
