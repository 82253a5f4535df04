// SIGTERM under load: what runs ends golden, nothing new is taken, and the exit code says whether
// work was cut. A second signal ends a process at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ShutdownTest : public testing::Test {
 protected:
  const IntegerModelFile model_{71};
};

TEST_F(ShutdownTest, GatewayDrainsWhatRuns) {
  Cluster cluster({.model = model_.path()});
  ASSERT_TRUE(cluster.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(3, 400);
  const auto channel = rpc::MakeChannel(cluster.address("gateway"));
  std::vector<std::unique_ptr<OpenStream>> streams;
  for (const GoldenRequest& request : requests) {
    streams.push_back(std::make_unique<OpenStream>(channel, Cluster::Greedy(request.prompt, 400),
                                                   OpenStream::Options{}));
    ASSERT_TRUE(streams.back()->ReadTokens(1));
  }
  cluster.Kill("gateway", SIGTERM);
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer& answer = streams[i]->Finish();
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.token_ids, requests[i].tokens);
  }
  EXPECT_EQ(cluster.process("gateway").WaitForExit(seconds(10)), 0)
      << cluster.process("gateway").Log();
  // An orderly end alarms nobody.
  EXPECT_THAT(cluster.process("gateway").Log(), testing::Not(testing::HasSubstr("warning")));
}

TEST_F(ShutdownTest, LoadSeesOnlyWholeAnswersAndClearRefusalsWhileAllStop) {
  Cluster cluster({.model = model_.path()});
  ASSERT_TRUE(cluster.WaitReady());
  ClientLoad load(cluster, model_.Requests(6, 60), 3);
  ASSERT_TRUE(load.WaitForTokens(100));
  load.ExpectGatewayStop();
  EXPECT_TRUE(cluster.Stop());  // in order, each with exit 0
  EXPECT_GT(load.Stop().finished, 0);
  EXPECT_THAT(Names(cluster.directory(), true), testing::IsEmpty());
}

TEST_F(ShutdownTest, DrainThatRunsOutOfTimeCutsWithAnErrorAndSaysSo) {
  Cluster cluster({.model = model_.path(), .gateway_flags = {"--drain-timeout", "0"}});
  ASSERT_TRUE(cluster.WaitReady());
  ClientLoad load(cluster, model_.Requests(3, 450), 3);
  ASSERT_TRUE(load.WaitForTokens(50));
  load.ExpectGatewayStop();
  cluster.Kill("gateway", SIGTERM);
  EXPECT_EQ(cluster.process("gateway").WaitForExit(seconds(10)), 75);
  EXPECT_GT(load.Stop().failed, 0);
}

TEST_F(ShutdownTest, WorkersThatStopUnderLoadEndWithZeroAndComeBack) {
  Cluster cluster({.model = model_.path()});
  ASSERT_TRUE(cluster.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(6, 60);
  ClientLoad load(cluster, requests, 3);
  for (const char* worker : {"cpu-worker", "gpu-worker", "placement"}) {
    ASSERT_TRUE(load.WaitForTokens(100)) << cluster.Logs();
    cluster.Kill(worker, SIGTERM);
    EXPECT_EQ(cluster.process(worker).WaitForExit(seconds(10)), 0) << worker << "\n"
                                                                   << cluster.process(worker).Log();
    cluster.Start(worker);
    EXPECT_TRUE(cluster.process(worker).WaitForLine("ready", seconds(20)).has_value());
    EXPECT_TRUE(GoldenWithin(cluster, requests[0], seconds(5))) << cluster.Logs();
  }
  load.Stop();
  EXPECT_TRUE(cluster.Stop());
}

TEST_F(ShutdownTest, SecondSignalEndsTheDrainAtOnce) {
  Cluster cluster({.model = model_.path()});
  ASSERT_TRUE(cluster.WaitReady());
  // Four answers run and more wait: the drain has long to go.
  ClientLoad load(cluster, model_.Requests(3, 450), 12);
  ASSERT_TRUE(load.WaitForTokens(10));
  load.ExpectGatewayStop();
  cluster.Kill("gateway", SIGTERM);
  ChildProcess& gateway = cluster.process("gateway");
  ASSERT_TRUE(
      Eventually(seconds(5), [&] { return gateway.Log().find("draining") != std::string::npos; }));
  gateway.Signal(SIGTERM);
  EXPECT_EQ(gateway.WaitForExit(milliseconds(1000)), 130);
  load.Stop();
}

}  // namespace
}  // namespace isotherm::integration
