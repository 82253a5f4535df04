// The placement_service's operations while requests run, and what it and the workers know after
// one of them died.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <bit>
#include <iostream>
#include <random>
#include <thread>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

class PlacementClusterTest : public testing::Test {
 protected:
  PlacementClusterTest()
      : cluster_({.model = model_.path(), .budget = std::to_string(kAllNeuronBytes)}),
        requests_(model_.Requests(6, 200)) {}
  void SetUp() override {
    ASSERT_TRUE(cluster_.WaitReady());
    load_.emplace(cluster_, requests_, 2);
  }
  void TearDown() override {
    // Placement never costs a request.
    const ClientLoad::Counts counts = load_->Stop();
    EXPECT_GT(counts.finished, 0);
    if (!gpu_worker_died_) {
      EXPECT_EQ(counts.failed, 0) << counts.first_error;
    }
    EXPECT_TRUE(cluster_.Stop());
    if (HasFailure()) std::cerr << cluster_.Logs();
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::PlacementService::Stub::*method)(grpc::ClientContext*,
                                                                       const Request&, Response*),
                    const Request& request, Response* response) {
    const auto stub = cluster_.Placement();
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + seconds(20));
    return ((*stub).*method)(&context, request, response);
  }
  grpc::Status SetBudget(int64_t bytes, const std::string& id, const std::string& etag,
                         v1::SetBudgetResponse* response) {
    v1::SetBudgetRequest request;
    request.set_bytes(bytes);
    request.set_request_id(id);
    request.set_if_etag(etag);
    return Call(&v1::PlacementService::Stub::SetBudget, request, response);
  }
  v1::PlacementPlan PlanUnder(int64_t bytes) {
    v1::SetBudgetResponse response;
    const grpc::Status status = SetBudget(bytes, "", "", &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.plan();
  }
  v1::PlacementPlan Live(bool bitmaps = false) {
    v1::GetPlacementRequest request;
    request.set_include_bitmaps(bitmaps);
    v1::GetPlacementResponse response;
    const grpc::Status status = Call(&v1::PlacementService::Stub::GetPlacement, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.plan();
  }
  // The gateway has stamped an answer's last step with the epoch.
  bool ServesUnder(int64_t epoch) {
    return Eventually(seconds(10), [&] {
      const Answer answer = cluster_.Generate(Cluster::Greedy(requests_[0].prompt, 20));
      return answer.status.ok() && answer.summary.epoch() == epoch;
    });
  }
  bool WorkerHas(const std::string& worker, int64_t epoch) {
    return Eventually(seconds(10), [&] {
      const auto described = cluster_.Describe(worker);
      return described && described->committed_epoch() == epoch;
    });
  }

  const IntegerModelFile model_{91};
  Cluster cluster_;
  const std::vector<GoldenRequest> requests_;
  std::optional<ClientLoad> load_;
  bool gpu_worker_died_ = false;
};

TEST_F(PlacementClusterTest, BudgetIsKeptAndPlanIsServed) {
  for (const int64_t bytes :
       {int64_t{0}, kAllNeuronBytes / 4, kAllNeuronBytes / 2, kAllNeuronBytes}) {
    const v1::PlacementPlan plan = PlanUnder(bytes);
    EXPECT_LE(plan.used_bytes(), bytes);
    EXPECT_GE(plan.used_bytes(), bytes - 256);  // less than a bundle is left
    EXPECT_TRUE(ServesUnder(plan.epoch()));
    const v1::PlacementPlan live = Live(true);
    EXPECT_EQ(live.epoch(), plan.epoch());
    int64_t hot = 0;
    for (const v1::LayerPlacement& layer : live.layers()) {
      int64_t bits = 0;
      for (const char byte : layer.gpu_bitmap()) bits += std::popcount(static_cast<uint8_t>(byte));
      EXPECT_EQ(bits, layer.gpu_neurons());
      hot += bits;
    }
    EXPECT_EQ(hot * 256, live.used_bytes());
  }
}

TEST_F(PlacementClusterTest, RollbackPublishesOldContentsAsNewEpoch) {
  const v1::PlacementPlan first = PlanUnder(kAllNeuronBytes / 4);
  const std::string bitmap = Live(true).layers(1).gpu_bitmap();
  const v1::PlacementPlan second = PlanUnder(kAllNeuronBytes / 2);
  v1::RollbackRequest request;
  request.set_to_epoch(first.epoch());
  v1::RollbackResponse response;
  const grpc::Status status = Call(&v1::PlacementService::Stub::Rollback, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(response.plan().epoch(), second.epoch());
  EXPECT_EQ(response.plan().from_epoch(), first.epoch());
  EXPECT_EQ(Live(true).layers(1).gpu_bitmap(), bitmap);
  EXPECT_TRUE(ServesUnder(response.plan().epoch()));

  v1::HistoryResponse history;
  ASSERT_TRUE(Call(&v1::PlacementService::Stub::History, v1::HistoryRequest(), &history).ok());
  ASSERT_GE(history.entries_size(), 4);  // the initial plan, too
  for (int i = 1; i < history.entries_size(); ++i) {
    EXPECT_LT(history.entries(i).plan().epoch(), history.entries(i - 1).plan().epoch());
    EXPECT_NE(history.entries(i).state(), v1::PLAN_STATE_LIVE);
  }
  EXPECT_EQ(history.entries(0).state(), v1::PLAN_STATE_LIVE);
}

TEST_F(PlacementClusterTest, RepeatedRequestIsOneOperationAndStaleEtagNone) {
  const v1::PlacementPlan before = Live();
  v1::SetBudgetResponse once, again, stale;
  ASSERT_TRUE(SetBudget(kAllNeuronBytes / 4, "same", before.etag(), &once).ok());
  ASSERT_TRUE(SetBudget(kAllNeuronBytes / 4, "same", before.etag(), &again).ok());
  EXPECT_EQ(once.plan().epoch(), again.plan().epoch());
  EXPECT_THAT(SetBudget(kAllNeuronBytes / 2, "other", before.etag(), &stale).error_code(),
              testing::AnyOf(grpc::StatusCode::ABORTED, grpc::StatusCode::FAILED_PRECONDITION));
  EXPECT_EQ(Live().epoch(), once.plan().epoch());
}

TEST_F(PlacementClusterTest, KilledPlacementServiceComesBackWithItsPlan) {
  const v1::PlacementPlan plan = PlanUnder(kAllNeuronBytes / 2);
  ASSERT_TRUE(ServesUnder(plan.epoch()));
  for (int death = 0; death < 5; ++death) {
    cluster_.Kill("placement", SIGKILL);
    // Nobody is there, and requests go on under the plan.
    ASSERT_TRUE(load_->WaitForTokens(300));
    EXPECT_TRUE(ServesUnder(plan.epoch()));
    cluster_.Start("placement");
    ASSERT_TRUE(cluster_.process("placement").WaitForLine("ready", seconds(20)).has_value());
    EXPECT_EQ(Live().epoch(), plan.epoch());
    EXPECT_TRUE(ServesUnder(plan.epoch()));
  }
  EXPECT_TRUE(ServesUnder(PlanUnder(kAllNeuronBytes / 4).epoch()));
}

TEST_F(PlacementClusterTest, PlacementServiceKilledInAMigrationLeavesOneOfBothPlans) {
  int64_t epoch = Live().epoch();
  std::mt19937_64 rng(3);
  for (int death = 0; death < 8; ++death) {
    const auto stub = cluster_.Placement();
    v1::SetBudgetRequest request;
    request.set_bytes(kAllNeuronBytes / 8 * death);
    grpc::ClientContext context;
    v1::SetBudgetResponse response;
    std::thread caller([&] { (void)stub->SetBudget(&context, request, &response); });
    // Sooner or later in the change, or just after.
    EXPECT_TRUE(load_->WaitForTokens(static_cast<int64_t>(rng() % 60)));
    cluster_.Kill("placement", SIGKILL);
    caller.join();
    cluster_.Start("placement");
    ASSERT_TRUE(cluster_.process("placement").WaitForLine("ready", seconds(20)).has_value());
    ASSERT_TRUE(cluster_.WaitForPlan(0, seconds(10)).has_value());
    const int64_t now = Live().epoch();
    EXPECT_GE(now, epoch);
    EXPECT_TRUE(WorkerHas("gpu-worker", now));
    EXPECT_TRUE(WorkerHas("cpu-worker", now));
    EXPECT_TRUE(ServesUnder(now));
    epoch = now;
  }
}

TEST_F(PlacementClusterTest, RestartedWorkersGetTheLivePlanAgain) {
  gpu_worker_died_ = true;
  const v1::PlacementPlan plan = PlanUnder(kAllNeuronBytes / 2);
  for (const char* worker : {"gpu-worker", "cpu-worker"}) {
    cluster_.Kill(worker, SIGKILL);
    cluster_.Start(worker);
    ASSERT_TRUE(cluster_.process(worker).WaitForLine("ready", seconds(20)).has_value());
    EXPECT_TRUE(WorkerHas(worker, plan.epoch())) << worker;
    EXPECT_TRUE(ServesUnder(plan.epoch())) << worker;
    EXPECT_EQ(Live().epoch(), plan.epoch());
  }
}

}  // namespace
}  // namespace isotherm::integration
