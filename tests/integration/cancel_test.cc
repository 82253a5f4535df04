// Requests that end early give everything back: the KV pool here holds two requests of full length,
// so a page that leaked would show in the golden requests after them.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <future>

#include "common/base/check.h"
#include "common/base/unique_fd.h"
#include "common/rpc/channel.h"
#include "grpcpp/create_channel_posix.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kContext = 256;
constexpr int kRounds = 12;

class CancelTest : public testing::Test {
 protected:
  CancelTest()
      : cluster_({.model = model_.path(),
                  .budget = "64KiB",
                  .gpu_flags = {"--context", std::to_string(kContext), "--parallel", "2"},
                  .gateway_flags = {"--parallel", "2"}}) {
    for (GoldenRequest& request : model_.Requests(2, kContext - 40)) {
      requests_.push_back(std::move(request));
    }
  }
  void SetUp() override { ASSERT_TRUE(cluster_.WaitReady()); }
  void TearDown() override { EXPECT_TRUE(cluster_.Stop()); }

  v1::GenerateRequest Long(size_t i) const {
    return Cluster::Greedy(requests_[i].prompt, static_cast<int>(requests_[i].tokens.size()));
  }
  // Both at once need the whole pool.
  void ExpectWholePoolServes() {
    auto other = std::async(std::launch::async, [this] { ExpectGolden(cluster_, requests_[0]); });
    ExpectGolden(cluster_, requests_[1]);
    other.get();
  }
  std::shared_ptr<grpc::Channel> Channel() const {
    return rpc::MakeChannel(cluster_.address("gateway"));
  }

  const IntegerModelFile model_{41};
  Cluster cluster_;
  std::vector<GoldenRequest> requests_;
};

TEST_F(CancelTest, CancelInAnyPhaseFreesEverything) {
  const auto channel = Channel();
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::unique_ptr<OpenStream>> streams;
    for (size_t i = 0; i < 4; ++i) {  // two run, two wait
      streams.push_back(std::make_unique<OpenStream>(channel, Long(i % 2), OpenStream::Options{}));
    }
    EXPECT_TRUE(streams[0]->ReadTokens(static_cast<size_t>(1 + round)));
    for (auto& stream : streams) stream->Cancel();
    for (auto& stream : streams) {
      const Answer& answer = stream->Finish();
      if (!answer.status.ok()) {
        EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
      }
    }
    if (round % 3 == 0) ExpectWholePoolServes();
  }
  ExpectWholePoolServes();
}

TEST_F(CancelTest, AbortByIdEndsTheAnswerWithOneError) {
  v1::GenerateRequest request = Long(0);
  request.set_request_id("abort-me");
  OpenStream stream(Channel(), request, {});
  ASSERT_TRUE(stream.ReadTokens(1));
  grpc::ClientContext context;
  v1::AbortRequest abort;
  abort.add_request_ids("abort-me");
  abort.add_request_ids("nobody");
  v1::AbortResponse response;
  ASSERT_TRUE(cluster_.Inference()->Abort(&context, abort, &response).ok());
  EXPECT_EQ(response.unknown_ids_size(), 2 - response.aborted_ids_size());
  const Answer& answer = stream.Finish();
  // It may have ended by itself before the abort was heard.
  EXPECT_EQ(answer.status.error_code(),
            response.aborted_ids_size() == 1 ? grpc::StatusCode::CANCELLED : grpc::StatusCode::OK);
  ExpectWholePoolServes();
}

TEST_F(CancelTest, DisconnectFreesEverything) {
  const int fds = NumFds(cluster_.process("gateway").pid());
  for (int round = 0; round < kRounds; ++round) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string path = cluster_.address("gateway").substr(std::string("unix:").size());
    ASSERT_LT(path.copy(name.sun_path, sizeof(name.sun_path) - 1), sizeof(name.sun_path) - 1);
    ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
    const int line = ::dup(fd.get());  // the channel closes its own
    OpenStream stream(grpc::CreateInsecureChannelFromFd("gateway", fd.Release()), Long(0), {});
    EXPECT_TRUE(stream.ReadTokens(static_cast<size_t>(1 + round)));
    ::shutdown(line, SHUT_RDWR);
    ::close(line);
    stream.Finish();
    if (round % 4 == 0) ExpectWholePoolServes();
  }
  ExpectWholePoolServes();
  // A leak would be one for each round; the gateway's own channels may come and go by one.
  static_assert(kRounds > 4);
  EXPECT_TRUE(Eventually(
      seconds(10), [&] { return NumFds(cluster_.process("gateway").pid()) < fds + kRounds / 2; }))
      << "descriptors before: " << fds << ", after: " << NumFds(cluster_.process("gateway").pid());
}

TEST_F(CancelTest, DeadlineEndsRunningAndWaitingRequests) {
  const auto channel = Channel();
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::unique_ptr<OpenStream>> streams;
    for (size_t i = 0; i < 6; ++i) {
      streams.push_back(std::make_unique<OpenStream>(
          channel, Long(i % 2), OpenStream::Options{.deadline = milliseconds(1 + 3 * round)}));
    }
    for (auto& stream : streams) {
      const Answer& answer = stream->Finish();
      if (!answer.status.ok()) {
        EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
      }
    }
  }
  ExpectWholePoolServes();
}

TEST_F(CancelTest, SlowReaderHoldsNobodyUpAndLosesNothing) {
  grpc::ChannelArguments arguments;
  // A window of few bytes: the gateway can send a handful of events, then must wait.
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto narrow = grpc::CreateCustomChannel(cluster_.address("gateway"),
                                                grpc::InsecureChannelCredentials(), arguments);
  OpenStream slow(narrow, Long(0), {});
  ASSERT_TRUE(slow.ReadTokens(1));
  for (int i = 0; i < 3; ++i) ExpectGolden(cluster_, requests_[1]);
  const Answer& answer = slow.Finish();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.token_ids, requests_[0].tokens);
  ExpectWholePoolServes();
}

}  // namespace
}  // namespace isotherm::integration
