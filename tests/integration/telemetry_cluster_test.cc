// Telemetry and moves with the traffic in the real processes, whatever becomes of the
// placement_service meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <iostream>
#include <numeric>

#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

int64_t ResidentKiB(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::string word;
  while (status >> word) {
    if (word != "VmRSS:") continue;
    int64_t kib = 0;
    status >> kib;
    return kib;
  }
  return -1;
}

class TelemetryClusterTest : public testing::Test {
 protected:
  TelemetryClusterTest()
      : cluster_({.model = model_.path(),
                  .budget = std::to_string(kAllNeuronBytes / 4),
                  .placement_flags = {"--moves-per-second", "0.5"},
                  .follow = true}),
        requests_(model_.Requests(6, 200)) {}
  void SetUp() override {
    ASSERT_TRUE(cluster_.WaitReady());
    load_.emplace(cluster_, requests_, 2);
  }
  void TearDown() override {
    const ClientLoad::Counts counts = load_->Stop();
    EXPECT_GT(counts.finished, 0);
    EXPECT_EQ(counts.failed, 0) << counts.first_error;
    EXPECT_TRUE(cluster_.Stop());
    if (HasFailure()) std::cerr << cluster_.Logs();
  }
  v1::GetPlacementResponse Placement() {
    const auto stub = cluster_.Placement();
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + seconds(10));
    v1::GetPlacementResponse response;
    const grpc::Status status = stub->GetPlacement(&context, v1::GetPlacementRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::GetProfileResponse Profile() {
    const auto stub = cluster_.Placement();
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + seconds(10));
    v1::GetProfileResponse response;
    const grpc::Status status = stub->GetProfile(&context, v1::GetProfileRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  const IntegerModelFile model_{55};
  Cluster cluster_;
  const std::vector<GoldenRequest> requests_;
  std::optional<ClientLoad> load_;
};

TEST_F(TelemetryClusterTest, ThePlanFollowsWhatBothWorkersCount) {
  const double even = Placement().plan().objective();
  ASSERT_TRUE(Eventually(seconds(60), [&] {
    const v1::GetPlacementResponse now = Placement();
    return now.plan().cause() == v1::PLACEMENT_CAUSE_TRAFFIC && now.measured_tokens() > 300;
  })) << Placement().status();
  const v1::GetPlacementResponse now = Placement();
  EXPECT_EQ(now.measured_size(), 4);
  EXPECT_GT(now.measured_hit_share(), even);
  EXPECT_NEAR(now.measured_hit_share(), now.plan().objective(), 0.15);
  EXPECT_FALSE(now.pinned());
  // Firings of hot and of cold neurons, which two processes counted, are one profile: every neuron
  // that fires was named, for the oracle's predictor misses none.
  const v1::GetProfileResponse profile = Profile();
  ASSERT_EQ(profile.layers_size(), 4);
  EXPECT_GT(profile.tokens(), 300);
  double predicted = 0, fired = 0;
  for (const v1::ProfileLayer& layer : profile.layers()) {
    ASSERT_EQ(layer.predicted_size(), 256);
    ASSERT_EQ(layer.fired_size(), 256);
    for (int n = 0; n < 256; ++n) {
      predicted += layer.predicted(n);
      fired += layer.fired(n);
      // Workers report at different moments of a second.
      EXPECT_LE(layer.fired(n), layer.predicted(n) + 0.2) << n;
    }
  }
  EXPECT_GT(fired, 0.3 * predicted);
}

TEST_F(TelemetryClusterTest, NothingWaitsForOrKeepsWhatTheServiceDoesNotTake) {
  ASSERT_TRUE(Eventually(seconds(30), [&] { return Profile().tokens() > 200; }));
  std::map<std::string, int64_t> memory;
  for (const char* worker : {"gpu-worker", "cpu-worker"}) {
    memory[worker] = ResidentKiB(cluster_.process(worker).pid());
  }
  // Stopped, so that connections stand and nobody reads.
  cluster_.Kill("placement", SIGSTOP);
  ASSERT_TRUE(load_->WaitForTokens(2'000));
  cluster_.Kill("placement", SIGCONT);
  // Gone, and there again with what it knew.
  ASSERT_TRUE(Eventually(seconds(30), [&] { return Profile().tokens() > 1'500; }));
  const double known = Profile().tokens();
  cluster_.Kill("placement", SIGTERM);
  ASSERT_TRUE(cluster_.process("placement").WaitForExit(seconds(10)).has_value());
  ASSERT_TRUE(load_->WaitForTokens(2'000));
  cluster_.Start("placement");
  ASSERT_TRUE(cluster_.process("placement").WaitForLine("ready", seconds(20)).has_value());
  // What was counted while it was away comes with the first reports.
  EXPECT_TRUE(Eventually(seconds(30), [&] { return Profile().tokens() > known + 1'500; }))
      << Profile().tokens() << " after " << known;
#ifndef __SANITIZE_ADDRESS__  // which keeps what is freed
  for (const auto& [worker, before] : memory) {
    EXPECT_LT(ResidentKiB(cluster_.process(worker).pid()), before + 8 * 1'024) << worker;
  }
#endif
}

TEST_F(TelemetryClusterTest, FalseReportsChangeNothing) {
  ASSERT_TRUE(Eventually(seconds(30), [&] { return Profile().tokens() > 200; }));
  const v1::GetProfileResponse before = Profile();
  const auto stub = cluster_.Placement();
  grpc::ClientContext context;
  v1::ReportTelemetryResponse response;
  const auto stream = stub->ReportTelemetry(&context, &response);
  int64_t sent = 0;
  const auto send = [&](v1::ReportTelemetryRequest request) {
    ++sent;
    EXPECT_TRUE(stream->Write(request));
  };
  v1::ReportTelemetryRequest request;
  request.set_instance_id("nobody");
  request.set_model_digest(before.model_digest());
  request.set_sequence(1);
  request.set_num_neurons(256);
  for (int l = 0; l < 4; ++l) {
    v1::LayerTelemetry* layer = request.add_layers();
    layer->set_tokens(1'000'000);
    for (int n = 0; n < 256; ++n) layer->add_predicted_counts(1'000'000);
  }
  send(request);
  request.set_sequence(-5);
  send(request);
  request.set_sequence(2);
  request.mutable_layers(0)->set_gpu_ns(-1);
  send(request);
  request.set_num_neurons(int64_t{1} << 40);
  send(request);
  request.set_instance_id(std::string(100'000, 'x'));
  send(request);
  // Millions of labels are no different from one.
  v1::ReportTelemetryRequest labels;
  labels.set_sequence(1);
  for (int i = 0; i < 10'000; ++i) {
    labels.set_instance_id("label-" + std::to_string(i));
    send(labels);
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(response.accepted(), 0);
  EXPECT_EQ(response.dropped(), sent);
  const v1::GetProfileResponse after = Profile();
  for (int n = 0; n < 256; ++n) {
    EXPECT_NEAR(after.layers(1).predicted(n), before.layers(1).predicted(n), 0.2);
  }
}

TEST_F(TelemetryClusterTest, TheBudgetShrinksAndGrowsUnderLoad) {
  const auto stub = cluster_.Placement();
  for (const int64_t bytes : {kAllNeuronBytes / 8, int64_t{0}, kAllNeuronBytes / 4,
                              kAllNeuronBytes / 16, kAllNeuronBytes / 4}) {
    v1::SetBudgetRequest request;
    request.set_bytes(bytes);
    v1::SetBudgetResponse response;
    // A move of its own may be under way.
    ASSERT_TRUE(Eventually(seconds(20), [&] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + seconds(20));
      return stub->SetBudget(&context, request, &response).ok();
    }));
    EXPECT_EQ(response.budget().effective_bytes(), bytes);
    EXPECT_LE(response.budget().used_bytes(), bytes);
    ASSERT_TRUE(load_->WaitForTokens(300));
    EXPECT_EQ(Placement().plan().budget_bytes(), bytes);  // moves keep to it
  }
}

}  // namespace
}  // namespace isotherm::integration
