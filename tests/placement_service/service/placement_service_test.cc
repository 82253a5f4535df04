// The binary against two fake workers, all over gRPC.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "isotherm/v1/placement.grpc.pb.h"
#include "tests/fakes/fake_prepare_server.h"
#include "tests/integration/child_process.h"

namespace isotherm {
namespace {

using integration::ChildProcess;
using ::testing::ElementsAre;
constexpr std::chrono::seconds kPatience{20};

class PlacementServiceTest : public ::testing::Test {
 protected:
  PlacementServiceTest() : gpu_({.name = "gpu_worker"}), cpu_({.name = "cpu_worker"}) {
    std::string pattern = ::testing::TempDir() + "/placement_XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
    gpu_server_ = std::make_unique<FakePrepareServer>(gpu_, "unix:" + directory_ + "/gpu.sock");
    cpu_server_ = std::make_unique<FakePrepareServer>(cpu_, "unix:" + directory_ + "/cpu.sock");
  }
  ~PlacementServiceTest() override {
    process_.reset();
    gpu_server_.reset();
    cpu_server_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::unique_ptr<ChildProcess> Launch(const std::string& state, std::vector<std::string> flags) {
    std::vector<std::string> command = {
        absl::StrCat(ISOTHERM_BINARY_DIR, "/bin/isotherm-placement"),
        "--model",
        directory_ + "/model.gguf",
        "--listen",
        "127.0.0.1:0",
        "--gpu-worker",
        "unix:" + directory_ + "/gpu.sock",
        "--cpu-worker",
        "unix:" + directory_ + "/cpu.sock",
        "--state-dir",
        directory_ + "/" + state};
    command.insert(command.end(), flags.begin(), flags.end());
    return std::make_unique<ChildProcess>("placement", command, directory_ + "/log");
  }
  // `until`: "ready" once a plan is live, "listening" when there will be none.
  void Start(std::vector<std::string> flags = {}, const std::string& state = "state",
             const char* until = "ready") {
    process_ = Launch(state, std::move(flags));
    const auto address = process_->WaitForLine("listening ", kPatience);
    ASSERT_TRUE(address.has_value()) << process_->Log();
    ASSERT_TRUE(process_->WaitForLine(until, kPatience).has_value()) << process_->Log();
    stub_ = v1::PlacementService::NewStub(rpc::MakeChannel(*address));
  }
  std::unique_ptr<grpc::ClientContext> Context() {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + kPatience);
    context->set_wait_for_ready(true);
    return context;
  }
  v1::PlacementPlan Live(bool bitmaps = false) {
    v1::GetPlacementRequest request;
    request.set_include_bitmaps(bitmaps);
    v1::GetPlacementResponse response;
    const grpc::Status status = stub_->GetPlacement(Context().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.plan();
  }
  grpc::Status SetBudget(int64_t bytes, const std::string& id, v1::SetBudgetResponse* response) {
    v1::SetBudgetRequest request;
    request.set_bytes(bytes);
    request.set_request_id(id);
    return stub_->SetBudget(Context().get(), request, response);
  }
  // Watches until the live plan is `epoch`.
  void WaitForLive(int64_t epoch) {
    const auto context = Context();
    const auto stream = stub_->Watch(context.get(), v1::WatchRequest());
    v1::WatchResponse event;
    while (stream->Read(&event)) {
      if (event.state() == v1::PLAN_STATE_LIVE && event.plan().epoch() == epoch) {
        context->TryCancel();
        stream->Finish();
        return;
      }
    }
    FAIL() << "epoch " << epoch << " was not announced\n" << process_->Log();
  }

  std::string directory_;
  FakePrepareWorker gpu_, cpu_;
  std::unique_ptr<FakePrepareServer> gpu_server_, cpu_server_;
  std::unique_ptr<ChildProcess> process_;
  std::unique_ptr<v1::PlacementService::Stub> stub_;
};

TEST_F(PlacementServiceTest, PublishesBudgetsAndRollbacksAndListsThem) {
  Start({"--budget", "300"});
  const v1::PlacementPlan first = Live(/*bitmaps=*/true);
  EXPECT_EQ(first.epoch(), 1);
  EXPECT_EQ(first.used_bytes(), 300);
  EXPECT_EQ(first.cause(), v1::PLACEMENT_CAUSE_INITIAL);
  EXPECT_EQ(first.profile(), "even");
  EXPECT_EQ(first.layers(0).gpu_bitmap().size(), 9u);
  EXPECT_EQ(first.layers(0).gpu_neurons(), 15);
  EXPECT_EQ(PlanChecksum(gpu_.PlanOf(1)), PlanChecksum(cpu_.PlanOf(1)));

  v1::SetBudgetResponse budget;
  ASSERT_TRUE(SetBudget(1000, "a", &budget).ok());
  EXPECT_EQ(budget.budget().requested_bytes(), 1000);
  EXPECT_EQ(budget.budget().effective_bytes(), 400);
  EXPECT_EQ(budget.budget().floor_bytes(), 0);
  EXPECT_EQ(budget.budget().used_bytes(), 400);
  EXPECT_EQ(budget.plan().epoch(), 2);
  EXPECT_THAT(gpu_.CommittedEpochs(), ::testing::Contains(2));
  ASSERT_TRUE(SetBudget(1000, "a", &budget).ok());
  EXPECT_EQ(budget.plan().epoch(), 2);

  v1::RollbackRequest rollback;
  rollback.set_request_id("r");
  rollback.set_to_epoch(1);
  rollback.set_if_etag(first.etag());
  v1::RollbackResponse rolled;
  grpc::Status status = stub_->Rollback(Context().get(), rollback, &rolled);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(ErrorReasonOf(rpc::FromGrpcStatus(status))->reason, "ETAG_MISMATCH");
  rollback.set_if_etag(Live().etag());
  status = stub_->Rollback(Context().get(), rollback, &rolled);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(rolled.plan().epoch(), 3);
  EXPECT_EQ(rolled.plan().from_epoch(), 1);
  EXPECT_EQ(rolled.plan().etag(), first.etag());

  std::vector<int64_t> epochs;
  v1::HistoryRequest page;
  page.set_page_size(2);
  v1::HistoryResponse history;
  do {
    history.Clear();
    status = stub_->History(Context().get(), page, &history);
    ASSERT_TRUE(status.ok()) << status.error_message();
    for (const auto& entry : history.entries()) epochs.push_back(entry.plan().epoch());
    page.set_page_token(history.next_page_token());
  } while (!history.next_page_token().empty());
  EXPECT_THAT(epochs, ElementsAre(3, 2, 1));
  page.set_page_token("x");
  EXPECT_EQ(stub_->History(Context().get(), page, &history).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  page.set_page_size(1001);
  EXPECT_EQ(stub_->History(Context().get(), page, &history).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  v1::GetPlacementRequest unknown;
  unknown.set_epoch(77);
  v1::GetPlacementResponse none;
  EXPECT_EQ(stub_->GetPlacement(Context().get(), unknown, &none).error_code(),
            grpc::StatusCode::NOT_FOUND);
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->WaitForExit(kPatience), 0) << process_->Log();
}

TEST_F(PlacementServiceTest, TellsTheWorkersMemoryBesideTheLivePlanOnly) {
  FakePrepareOptions worker{.name = "gpu_worker"};
  worker.memory = {.dense = 30, .kv = 20, .hot_pool = 40, .process = 95, .budget = 100};
  gpu_.Restart(worker);
  Start({"--budget", "300"});
  v1::GetPlacementRequest request;
  v1::GetPlacementResponse response;
  ASSERT_TRUE(stub_->GetPlacement(Context().get(), request, &response).ok());
  EXPECT_EQ(response.device(), "fake");
  EXPECT_EQ(response.memory().dense_bytes(), 30);
  EXPECT_EQ(response.memory().kv_bytes(), 20);
  EXPECT_EQ(response.memory().hot_pool_bytes(), 40);
  EXPECT_EQ(response.memory().process_bytes(), 95);
  EXPECT_EQ(response.memory().budget_bytes(), 100);
  request.set_epoch(response.plan().epoch());
  ASSERT_TRUE(stub_->GetPlacement(Context().get(), request, &response).ok());
  EXPECT_FALSE(response.has_memory());

  // The worker is gone: nobody knows.
  gpu_.SetAway(true);
  do {
    ASSERT_TRUE(stub_->GetPlacement(Context().get(), v1::GetPlacementRequest(), &response).ok());
  } while (response.has_memory());
}

TEST_F(PlacementServiceTest, KilledAndStartedAgainKeepsThePlanAndServesItsRequests) {
  Start();
  v1::SetBudgetResponse budget;
  ASSERT_TRUE(SetBudget(100, "a", &budget).ok());
  process_->Signal(SIGKILL);
  ASSERT_TRUE(process_->WaitForExit(kPatience).has_value());
  gpu_.Restart();
  cpu_.Restart();
  Start();
  EXPECT_EQ(Live().epoch(), 2);
  EXPECT_THAT(gpu_.CommittedEpochs(), ElementsAre(0, 2));
  EXPECT_THAT(cpu_.CommittedEpochs(), ElementsAre(0, 2));
  ASSERT_TRUE(SetBudget(100, "a", &budget).ok());
  EXPECT_EQ(budget.plan().epoch(), 2);
}

TEST_F(PlacementServiceTest, ServesWhileWorkersAreAwayAndGoesLiveWhenTheyCome) {
  cpu_server_.reset();
  Start({}, "state", "listening");
  // What the built-in plan is of is known once the gpu_worker was asked.
  const auto patience = std::chrono::steady_clock::now() + kPatience;
  while (Live().layers_size() != 2 && std::chrono::steady_clock::now() < patience) {
  }
  EXPECT_EQ(Live().epoch(), 0);
  EXPECT_EQ(Live().layers_size(), 2);
  cpu_server_ = std::make_unique<FakePrepareServer>(cpu_, "unix:" + directory_ + "/cpu.sock");
  WaitForLive(1);
  EXPECT_THAT(cpu_.CommittedEpochs(), ElementsAre(0, 1));
  v1::SetBudgetResponse budget;
  // The stream to a server that was replaced is replaced, too.
  gpu_server_.reset();
  gpu_.Restart();
  gpu_server_ = std::make_unique<FakePrepareServer>(gpu_, "unix:" + directory_ + "/gpu.sock");
  const grpc::Status status = SetBudget(100, "a", &budget);
  ASSERT_TRUE(status.ok()) << status.error_message() << process_->Log();
  EXPECT_EQ(budget.plan().epoch(), 2);
}

TEST_F(PlacementServiceTest, SecondServiceTakesOverAndTheFirstSaysSo) {
  Start();
  auto first = std::move(process_);
  auto first_stub = std::move(stub_);
  const auto context = Context();
  const auto stream = first_stub->Watch(context.get(), v1::WatchRequest());
  Start({}, "other_state");
  EXPECT_EQ(Live().epoch(), 2);
  v1::WatchResponse event;
  do {
    ASSERT_TRUE(stream->Read(&event)) << first->Log();
  } while (event.message().find("took over") == std::string::npos);
  context->TryCancel();
  stream->Finish();
  v1::SetBudgetResponse budget;
  EXPECT_TRUE(SetBudget(50, "b", &budget).ok());
  EXPECT_EQ(Live().epoch(), 3);
}

TEST_F(PlacementServiceTest, StoreInUseExits71AndGarbageExits65) {
  Start();
  EXPECT_EQ(Launch("state", {})->WaitForExit(kPatience), 71);
  std::filesystem::create_directories(directory_ + "/bad");
  std::ofstream(directory_ + "/bad/placement.sqlite") << std::string(5000, 'x');
  EXPECT_EQ(Launch("bad", {})->WaitForExit(kPatience), 65);
  EXPECT_EQ(Launch("none", {"--profile", "chat"})->WaitForExit(kPatience), 65);
  EXPECT_EQ(Launch("none", {"--budget", "much"})->WaitForExit(kPatience), 64);
  EXPECT_EQ(Launch("none", {"--help"})->WaitForExit(kPatience), 0);
}

TEST_F(PlacementServiceTest, SigtermEndsAChangeThatWaits) {
  Start();
  cpu_server_.reset();
  v1::SetBudgetRequest request;
  request.set_bytes(10);
  v1::SetBudgetResponse response;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = stub_->AsyncSetBudget(&context, request, &queue);
  grpc::Status status;
  call->Finish(&response, &status, this);
  // The intent is announced, so the operation waits for the cpu_worker now.
  const auto watch_context = Context();
  const auto stream = stub_->Watch(watch_context.get(), v1::WatchRequest());
  v1::WatchResponse event;
  while (event.plan().epoch() != 2 && event.state() != v1::PLAN_STATE_PREPARING) {
    ASSERT_TRUE(stream->Read(&event)) << process_->Log();
  }
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->WaitForExit(kPatience), 0) << process_->Log();
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ErrorReasonOf(rpc::FromGrpcStatus(status)).value_or(ErrorReason{}).reason, "DRAINING");
  watch_context->TryCancel();
  stream->Finish();
}

}  // namespace
}  // namespace isotherm
