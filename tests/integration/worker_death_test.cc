// A worker is killed again and again under load. Every request ends once: golden, or with an error
// and a prefix of golden; nothing is left behind in the processes that live on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <map>
#include <random>
#include <tuple>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;
using testing::IsEmpty;

constexpr int kDeaths = 20;
const char* const kServices[] = {"cpu-worker", "gpu-worker", "placement", "gateway"};

// (who dies, transport)
class WorkerDeathTest : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  const char* worker() const { return std::get<0>(GetParam()); }
  const char* transport() const { return std::get<1>(GetParam()); }

  std::map<std::string, int> FdsOfSurvivors(Cluster& cluster) const {
    std::map<std::string, int> fds;
    for (const std::string name : kServices) {
      if (name != worker()) fds[name] = NumFds(cluster.process(name).pid());
    }
    return fds;
  }

  const IntegerModelFile model_{31};
};

INSTANTIATE_TEST_SUITE_P(Workers, WorkerDeathTest,
                         testing::Combine(testing::Values("cpu-worker", "gpu-worker"),
                                          testing::Values("shm", "grpc")));

TEST_P(WorkerDeathTest, EveryRequestEndsOnceAndServiceReturns) {
  const std::vector<std::string> shared_memory = Names("/dev/shm");
  Cluster cluster({.model = model_.path(), .transport = transport(), .budget = "128KiB"});
  ASSERT_TRUE(cluster.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(6, 60);
  // One death first: what is allocated once is then there.
  const auto kill_and_restart = [&] {
    cluster.Kill(worker(), SIGKILL);
    cluster.Start(worker());
    ASSERT_TRUE(cluster.process(worker()).WaitForLine("ready", seconds(20)).has_value())
        << cluster.Logs();
    ASSERT_TRUE(GoldenWithin(cluster, requests[0], seconds(5))) << cluster.Logs();
  };
  kill_and_restart();
  const std::map<std::string, int> fds = FdsOfSurvivors(cluster);

  std::mt19937_64 rng(5);
  ClientLoad load(cluster, requests, 3);
  for (int death = 0; death < kDeaths && !HasFatalFailure(); ++death) {
    ASSERT_TRUE(load.WaitForTokens(static_cast<int64_t>(1 + rng() % 200))) << cluster.Logs();
    kill_and_restart();
  }
  const ClientLoad::Counts counts = load.Stop();
  RecordProperty("finished", std::to_string(counts.finished));
  RecordProperty("failed", std::to_string(counts.failed));
  EXPECT_GT(counts.finished, 0);
  if (std::string(worker()) == "cpu-worker" && std::string(transport()) == "shm") {
    // The gpu_worker has the arena still and computes what is lost.
    EXPECT_EQ(counts.failed, 0) << counts.first_error;
  }

  // What leaks at each death adds up; a connection that is just being made does not.
  EXPECT_TRUE(Eventually(seconds(10),
                         [&] {
                           for (const auto& [name, count] : FdsOfSurvivors(cluster)) {
                             if (count >= fds.at(name) + kDeaths / 4) return false;
                           }
                           return true;
                         }))
      << "descriptors before: " << testing::PrintToString(fds)
      << ", after: " << testing::PrintToString(FdsOfSurvivors(cluster));
  ExpectGolden(cluster, requests[1]);
  EXPECT_TRUE(cluster.Stop());
  EXPECT_THAT(Names(cluster.directory(), true), IsEmpty());
  EXPECT_EQ(Names("/dev/shm"), shared_memory);
}

}  // namespace
}  // namespace isotherm::integration
