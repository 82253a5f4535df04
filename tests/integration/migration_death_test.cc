// Each of the four processes is killed at each moment of a migration, and the moments are exact: a
// proxy between the placement_service and the workers kills when a phase is asked for, under way or
// answered. Whatever dies, the system is all old or all new afterwards, every answer is golden or
// one clear error, and the hot pool's memory is back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <iostream>
#include <optional>
#include <tuple>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/prepare_proxy.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using Moment = PrepareProxy::Moment;

struct DeathAt {
  const char* worker;  // whose phase it is
  v1::PreparePhase phase;
  Moment moment;
};
constexpr DeathAt kMoments[] = {
    // The intent is durable and nobody has heard of it; then bundles are copied and checked.
    {"gpu-worker", v1::PREPARE_PHASE_PLAN, Moment::kAsked},
    {"gpu-worker", v1::PREPARE_PHASE_PLAN, Moment::kCopying},
    {"gpu-worker", v1::PREPARE_PHASE_PLAN, Moment::kAnswered},
    {"cpu-worker", v1::PREPARE_PHASE_PLAN, Moment::kAsked},
    {"cpu-worker", v1::PREPARE_PHASE_PLAN, Moment::kAnswered},
    {"gpu-worker", v1::PREPARE_PHASE_COMMIT, Moment::kAsked},
    {"gpu-worker", v1::PREPARE_PHASE_COMMIT, Moment::kAnswered},
    {"cpu-worker", v1::PREPARE_PHASE_COMMIT, Moment::kAsked},
    // Committed everywhere, not announced; then announced, and the old epoch is freed.
    {"cpu-worker", v1::PREPARE_PHASE_COMMIT, Moment::kAnswered},
    {"gpu-worker", v1::PREPARE_PHASE_RETIRE, Moment::kAsked},
    {"gpu-worker", v1::PREPARE_PHASE_RETIRE, Moment::kAnswered},
    {"cpu-worker", v1::PREPARE_PHASE_RETIRE, Moment::kAsked},
    {"cpu-worker", v1::PREPARE_PHASE_RETIRE, Moment::kAnswered},
};

class MigrationDeathTest : public testing::TestWithParam<const char*> {
 protected:
  MigrationDeathTest()
      : cluster_({.model = model_.path(),
                  .budget = std::to_string(kAllNeuronBytes),
                  // A change takes half a second to copy.
                  .gpu_flags = {"--move-rate", "256KiB", "--poison-freed"},
                  .gpu_for_placement = gpu_proxy_.address(),
                  .cpu_for_placement = cpu_proxy_.address()}),
        requests_(model_.Requests(6, 200)) {
    gpu_proxy_.SetTarget(cluster_.address("gpu-worker"));
    cpu_proxy_.SetTarget(cluster_.address("cpu-worker"));
  }

  // Kills `victim` at the moment, once.
  void Arm(const DeathAt& at, const std::string& victim) {
    armed_ = true;
    PrepareProxy& proxy = std::string(at.worker) == "gpu-worker" ? gpu_proxy_ : cpu_proxy_;
    proxy.SetHook([this, at, victim](v1::PreparePhase phase, Moment moment) {
      if (phase != at.phase || moment != at.moment || !armed_.exchange(false)) return;
      cluster_.Kill(victim, SIGKILL);
      died_ = true;
    });
  }
  void Disarm() {
    gpu_proxy_.SetHook(nullptr);
    cpu_proxy_.SetHook(nullptr);
  }
  // Asks for a plan under which every second neuron is hot, the even or the odd ones, so that each
  // change copies 128 KiB.
  grpc::Status Import(const std::string& id, bool odd, v1::Recomputation* out) {
    v1::ImportPlanRequest request;
    request.set_request_id(id);
    for (int l = 0; l < 4; ++l) {
      v1::LayerPlacement* layer = request.add_layers();
      layer->set_gpu_bitmap(std::string(32, odd ? '\xaa' : '\x55'));
      layer->set_gpu_neurons(128);
      layer->set_total_neurons(256);
    }
    const auto stub = cluster_.Placement();
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + seconds(10));
    v1::ImportPlanResponse response;
    const grpc::Status status = stub->ImportPlan(&context, request, &response);
    *out = response.recomputation();
    return status;
  }
  std::optional<v1::PlacementPlan> Live() {
    const auto stub = cluster_.Placement();
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + seconds(10));
    v1::GetPlacementResponse response;
    if (!stub->GetPlacement(&context, v1::GetPlacementRequest(), &response).ok()) {
      return std::nullopt;
    }
    return response.plan();
  }
  // Both workers hold the live plan and the built-in one alone, and nothing else takes memory.
  bool Settled() {
    return Eventually(seconds(30), [&] {
      const auto live = Live();
      const auto gpu = cluster_.Describe("gpu-worker"), cpu = cluster_.Describe("cpu-worker");
      if (!live || !gpu || !cpu) return false;
      const std::vector<int64_t> wanted = {0, live->epoch()};
      return std::vector<int64_t>(gpu->epochs().begin(), gpu->epochs().end()) == wanted &&
             std::vector<int64_t>(cpu->epochs().begin(), cpu->epochs().end()) == wanted &&
             gpu->free_bytes() == kAllNeuronBytes - live->used_bytes();
    });
  }

  const IntegerModelFile model_{77};
  PrepareProxy gpu_proxy_, cpu_proxy_;
  Cluster cluster_;
  const std::vector<GoldenRequest> requests_;
  std::atomic<bool> armed_{false}, died_{false};
};

INSTANTIATE_TEST_SUITE_P(Victims, MigrationDeathTest,
                         testing::Values("placement", "gpu-worker", "cpu-worker", "gateway"));

TEST_P(MigrationDeathTest, LeavesAllOldOrAllNew) {
  const std::string victim = GetParam();
  ASSERT_TRUE(cluster_.WaitReady());
  ASSERT_TRUE(Settled()) << cluster_.Logs();
  ClientLoad load(cluster_, requests_, 2);
  if (victim == "gateway") load.ExpectGatewayStop();
  int old_plans = 0, new_plans = 0;
  int changes = 0;
  bool odd = false;
  for (const DeathAt& at : kMoments) {
    SCOPED_TRACE(std::string(at.worker) + " " + v1::PreparePhase_Name(at.phase) + " " +
                 std::to_string(static_cast<int>(at.moment)));
    const int64_t before = Live()->epoch();
    ASSERT_TRUE(load.WaitForTokens(50)) << cluster_.Logs();
    Arm(at, victim);
    odd = !odd;
    const std::string id = "change-" + std::to_string(++changes);
    v1::Recomputation wish;
    const grpc::Status asked = Import(id, odd, &wish);
    EXPECT_TRUE(asked.ok()) << asked.error_message();
    // A retirement comes after the answer.
    ASSERT_TRUE(Eventually(seconds(20), [&] { return died_.load(); })) << cluster_.Logs();
    died_ = false;
    Disarm();
    cluster_.Start(victim);
    ASSERT_TRUE(cluster_.process(victim).WaitForLine("ready", seconds(30)).has_value())
        << cluster_.Logs();
    ASSERT_TRUE(Settled()) << cluster_.Logs();
    const int64_t after = Live()->epoch();
    EXPECT_GE(after, before);
    (after == before ? old_plans : new_plans) += 1;
    // Asked again with the same id it is done, once.
    ASSERT_TRUE(Eventually(seconds(30), [&] {
      return Import(id, odd, &wish).ok() && wish.state() >= v1::RECOMPUTATION_STATE_APPLIED;
    })) << cluster_.Logs();
    EXPECT_EQ(wish.state(), v1::RECOMPUTATION_STATE_APPLIED) << wish.reason();
    EXPECT_EQ(wish.proposal().epoch(), Live()->epoch());
    EXPECT_TRUE(after == before || after == Live()->epoch());
    ASSERT_TRUE(Settled()) << cluster_.Logs();
    ASSERT_TRUE(GoldenWithin(cluster_, requests_[0], seconds(20))) << cluster_.Logs();
  }
  EXPECT_GT(new_plans, 0);
  RecordProperty("old", std::to_string(old_plans));
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_GT(counts.finished, 0);
  if (victim == "placement") {
    EXPECT_EQ(counts.failed, 0) << counts.first_error;
  }
  EXPECT_TRUE(cluster_.Stop());
  if (HasFailure()) std::cerr << cluster_.Logs();
}

}  // namespace
}  // namespace isotherm::integration
