// The gateway is killed with streams open: the workers forget its requests within a step, and the
// next gateway finds the whole KV pool and the live plan.
#include <gtest/gtest.h>
#include <signal.h>

#include <future>

#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

constexpr int kShortContext = 256;
constexpr int kDeaths = 5;

TEST(GatewayDeathTest, LeavesNothingBehindInTheWorkers) {
  const IntegerModelFile model(111);
  Cluster cluster({.model = model.path(),
                   .budget = "64KiB",
                   .gpu_flags = {"--context", std::to_string(kShortContext), "--parallel", "2"},
                   .gateway_flags = {"--parallel", "2"}});
  ASSERT_TRUE(cluster.WaitReady());
  // Two of them need the whole pool.
  const std::vector<GoldenRequest> requests = model.Requests(2, kShortContext - 40);
  const auto request = [&](size_t i) {
    return Cluster::Greedy(requests[i].prompt, static_cast<int>(requests[i].tokens.size()));
  };
  std::map<std::string, int> fds;
  for (int death = 0; death < kDeaths; ++death) {
    std::vector<std::unique_ptr<OpenStream>> streams;
    for (size_t i = 0; i < 4; ++i) {  // two run, two wait
      streams.push_back(std::make_unique<OpenStream>(rpc::MakeChannel(cluster.address("gateway")),
                                                     request(i % 2), OpenStream::Options{}));
    }
    ASSERT_TRUE(streams[0]->ReadTokens(static_cast<size_t>(1 + death)));
    cluster.Kill("gateway", SIGKILL);
    for (size_t i = 0; i < streams.size(); ++i) {
      const Answer& answer = streams[i]->Finish();
      if (answer.status.ok()) continue;  // it had ended just before
      EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
      const std::vector<int32_t>& tokens = requests[i % 2].tokens;
      ASSERT_LE(answer.token_ids.size(), tokens.size());
      EXPECT_TRUE(std::equal(answer.token_ids.begin(), answer.token_ids.end(), tokens.begin()));
    }
    cluster.Start("gateway");
    ASSERT_TRUE(cluster.process("gateway").WaitForLine("ready", seconds(20)).has_value())
        << cluster.Logs();
    ASSERT_TRUE(GoldenWithin(cluster, requests[0], seconds(10))) << cluster.Logs();
    auto other = std::async(std::launch::async, [&] { ExpectGolden(cluster, requests[0]); });
    ExpectGolden(cluster, requests[1]);
    other.get();
    for (const std::string name : {"cpu-worker", "gpu-worker", "placement"}) {
      const int now = NumFds(cluster.process(name).pid());
      // What is opened once is there after the first death; a leak adds up over the others.
      if (death == 0) fds[name] = now;
      EXPECT_LT(now, fds[name] + kDeaths - 1) << name;
    }
  }
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
