// The worker's gRPC face over a real socket.
#include "cpu_worker/service/cpu_worker_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/step_convert.h"
#include "cpu_worker/service/worker_service.h"
#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

using testing::ElementsAre;

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
}

class CpuWorkerServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    worker_ = std::make_unique<CpuWorker>(
        CpuWorker::Options{.socket_dir = directory_.path(), .num_threads = 2, .max_rows = 8});
    worker_service_ = std::make_unique<WorkerService>(*worker_);
    cpu_service_ = std::make_unique<CpuWorkerService>(*worker_);
    auto server = rpc::Server::Start({.listen = "unix:" + directory_.path() + "/w.sock"},
                                     {worker_service_.get(), cpu_service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto channel = rpc::MakeChannel(server_->address());
    worker_stub_ = v1::WorkerService::NewStub(channel);
    cpu_stub_ = v1::CpuWorkerService::NewStub(channel);
  }
  void Load() { ASSERT_TRUE(worker_->Load(ToySource(), kToyDigest, nullptr).ok()); }

  grpc::Status OpenArena(const std::string& digest, v1::OpenArenaResponse* response) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::OpenArenaRequest request;
    request.set_layout_hash(shm::LayoutHash(ToySource().shape));
    request.set_model_digest(digest);
    request.set_peer_instance_id("gpu");
    request.set_max_rows(4);
    return cpu_stub_->OpenArena(&context, request, response);
  }

  static v1::ComputeLayerRequest LayerRequest(const ToyPost& post, int rows) {
    v1::ComputeLayerRequest request;
    request.set_step_id(3);
    request.set_layer(2);
    request.set_num_rows(rows);
    request.set_input(post.z.data(), post.z.size() * 2);
    request.set_active(post.active.data(), post.active.size() * 8);
    request.mutable_row_keys()->Assign(post.row_keys.begin(), post.row_keys.end());
    request.set_cut(100);
    request.set_deadline_us(20'000'000);
    request.set_nonce(99);
    return request;
  }
  // The status that ends a ComputeLayer stream on which `request` was sent.
  grpc::Status EndAfter(const v1::ComputeLayerRequest& request) {
    grpc::ClientContext context;
    SetDeadline(context);
    auto stream = cpu_stub_->ComputeLayer(&context);
    stream->Write(request);
    v1::ComputeLayerResponse response;
    EXPECT_FALSE(stream->Read(&response));
    return stream->Finish();
  }

  TemporaryDirectory directory_;
  std::unique_ptr<CpuWorker> worker_;
  std::unique_ptr<WorkerService> worker_service_;
  std::unique_ptr<CpuWorkerService> cpu_service_;
  std::unique_ptr<rpc::Server> server_;  // after the services: gone before them
  std::unique_ptr<v1::WorkerService::Stub> worker_stub_;
  std::unique_ptr<v1::CpuWorkerService::Stub> cpu_stub_;
};

TEST_F(CpuWorkerServiceTest, SaysWhoItIsWhileItLoadsAndRefusesWork) {
  v1::DescribeResponse description;
  {
    grpc::ClientContext context;
    SetDeadline(context);
    ASSERT_TRUE(worker_stub_->Describe(&context, {}, &description).ok());
  }
  EXPECT_EQ(description.kind(), v1::WORKER_KIND_CPU);
  EXPECT_LT(description.load_progress(), 1);
  v1::OpenArenaResponse opened;
  EXPECT_EQ(OpenArena(kToyDigest, &opened).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(EndAfter({}).error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext context;
  SetDeadline(context);
  auto stream = worker_stub_->Execute(&context);
  v1::ExecuteResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(CpuWorkerServiceTest, DescribesTheModel) {
  Load();
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DescribeResponse description;
  ASSERT_TRUE(worker_stub_->Describe(&context, {}, &description).ok());
  EXPECT_EQ(description.load_progress(), 1);
  EXPECT_EQ(description.model_digest(), kToyDigest);
  EXPECT_EQ(description.num_layers(), 3);
  EXPECT_EQ(description.num_neurons(), 100);
  EXPECT_EQ(description.bundle_bytes(), 192);
  EXPECT_EQ(description.threads(), 2);
  EXPECT_FALSE(description.isa().empty());
  EXPECT_THAT(description.epochs(), ElementsAre(0));
  grpc::ClientContext other;
  SetDeadline(other);
  v1::DescribeRequest request;
  request.set_protocol_version(2);
  EXPECT_EQ(worker_stub_->Describe(&other, request, &description).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(CpuWorkerServiceTest, OpensTheArenaForItsOwnModelOnly) {
  Load();
  v1::OpenArenaResponse response;
  EXPECT_EQ(OpenArena("another", &response).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  const grpc::Status status = OpenArena(kToyDigest, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.handoff_token().size(), 32u);
  EXPECT_EQ(response.instance_id(), worker_->instance_id());
  grpc::ClientContext context;
  SetDeadline(context);
  v1::CloseArenaRequest request;
  request.set_nonce_high(response.nonce_high());
  request.set_nonce_low(response.nonce_low());
  v1::CloseArenaResponse closed;
  EXPECT_TRUE(cpu_stub_->CloseArena(&context, request, &closed).ok());
}

TEST_F(CpuWorkerServiceTest, ComputesLayersOverTheStream) {
  Load();
  grpc::ClientContext execute_context;
  SetDeadline(execute_context);
  auto execute = worker_stub_->Execute(&execute_context);
  v1::ExecuteResponse told;
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_EQ(told.hello().model_digest(), kToyDigest);

  grpc::ClientContext context;
  SetDeadline(context);
  auto stream = cpu_stub_->ComputeLayer(&context);
  uint64_t total = 0;
  for (int rows = 1; rows <= 4; ++rows) {
    const ToyPost post(rows, static_cast<uint32_t>(rows));
    ASSERT_TRUE(stream->Write(LayerRequest(post, rows)));
    v1::ComputeLayerResponse response;
    ASSERT_TRUE(stream->Read(&response));
    ASSERT_EQ(response.status(), v1::COMPUTE_LAYER_STATUS_DONE);
    EXPECT_EQ(response.step_id(), 3);
    EXPECT_EQ(response.layer(), 2);
    const auto want =
        ToyReference((*worker_->parts())->arena->layer(2),
                     {.step_id = 3, .layer = 2, .num_rows = rows, .cut = 100}, 99, post, nullptr);
    EXPECT_EQ(response.work_hash(), want.work_hash);
    ASSERT_EQ(response.partial().size(), want.partial.size() * 4);
    for (size_t i = 0; i < want.partial.size(); ++i) {
      float value;
      std::memcpy(&value, response.partial().data() + 4 * i, 4);
      ASSERT_EQ(static_cast<double>(value), want.partial[i]);
    }
    total += response.work_hash();
  }
  v1::ComputeLayerRequest end;
  end.set_step_id(3);
  end.set_layer(-1);
  ASSERT_TRUE(stream->Write(end));
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_EQ(told.result().step_id(), 3);
  EXPECT_EQ(told.result().work_hash(), total);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(CpuWorkerServiceTest, RefusesLayersThatDoNotFitTheModel) {
  Load();
  const ToyPost post(2, 1);
  const auto code = [&](auto change) {
    v1::ComputeLayerRequest request = LayerRequest(post, 2);
    change(request);
    return EndAfter(request).error_code();
  };
  constexpr auto kRefused = grpc::StatusCode::INVALID_ARGUMENT;
  EXPECT_EQ(code([](auto& r) { r.set_layer(3); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_layer(-2); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_num_rows(0); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_num_rows(9); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_num_rows(3); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_cut(-1); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_cut(101); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.mutable_input()->pop_back(); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.mutable_active()->push_back('x'); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.add_row_keys(1); }), kRefused);
  EXPECT_EQ(code([](auto& r) { r.set_deadline_us(-1); }), kRefused);
}

TEST_F(CpuWorkerServiceTest, AnUnknownEpochIsStaleAndTheStreamGoesOn) {
  Load();
  grpc::ClientContext context;
  SetDeadline(context);
  auto stream = cpu_stub_->ComputeLayer(&context);
  const ToyPost post(1, 1);
  v1::ComputeLayerRequest request = LayerRequest(post, 1);
  request.set_epoch(5);
  v1::ComputeLayerResponse response;
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_EQ(response.status(), v1::COMPUTE_LAYER_STATUS_STALE_EPOCH);
  request.set_epoch(0);
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_EQ(response.status(), v1::COMPUTE_LAYER_STATUS_DONE);
}

TEST_F(CpuWorkerServiceTest, CarriesAPlanFromPrepareToRetireAndTellsTheGateway) {
  Load();
  grpc::ClientContext execute_context;
  SetDeadline(execute_context);
  auto execute = worker_stub_->Execute(&execute_context);
  v1::ExecuteResponse told;
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_THAT(told.hello().epochs(), ElementsAre(0));

  grpc::ClientContext context;
  SetDeadline(context);
  auto stream = worker_stub_->Prepare(&context);
  v1::PrepareRequest request;
  v1::PrepareResponse response;
  request.set_op_id("op");
  request.set_term(2);
  request.set_phase(v1::PREPARE_PHASE_PLAN);
  *request.mutable_plan() = rpc::ToProto(ToyPlan(6, 2, 1), /*include_bitmaps=*/true);
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_TRUE(response.ready());
  EXPECT_EQ(response.epoch(), 6);
  EXPECT_EQ(response.op_id(), "op");
  EXPECT_EQ(response.checksum(), PlanChecksum(ToyPlan(6, 2, 1)));

  request.clear_plan();
  request.set_epoch(6);
  request.set_phase(v1::PREPARE_PHASE_COMMIT);
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_TRUE(response.ready());
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_THAT(told.hello().epochs(), ElementsAre(0, 6));

  // A step that names the epoch holds the retirement up.
  v1::ExecuteRequest announce;
  announce.mutable_step()->set_step_id(10);
  announce.mutable_step()->set_epoch(6);
  ASSERT_TRUE(execute->Write(announce));
  while (!worker_->ledger().Uses(6)) std::this_thread::yield();
  request.set_phase(v1::PREPARE_PHASE_RETIRE);
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_FALSE(response.ready());
  (*worker_->parts())->engine->EndStep({.step_id = 10, .epoch = 6});
  while (!response.ready()) ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_EQ(told.result().step_id(), 10);
  ASSERT_TRUE(execute->Read(&told));
  EXPECT_THAT(told.hello().epochs(), ElementsAre(0));

  // And one that comes too late is refused by name.
  announce.mutable_step()->set_step_id(11);
  ASSERT_TRUE(execute->Write(announce) && execute->Read(&told));
  EXPECT_EQ(told.result().step_id(), 11);
  EXPECT_EQ(told.result().error_code(), static_cast<int>(grpc::StatusCode::ABORTED));

  request.set_term(1);
  ASSERT_TRUE(stream->Write(request));
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(CpuWorkerServiceTest, CancelledStreamsGoAway) {
  Load();
  for (int i = 0; i < 10; ++i) {
    grpc::ClientContext execute_context;
    grpc::ClientContext prepare_context;
    grpc::ClientContext layer_context;
    auto execute = worker_stub_->Execute(&execute_context);
    auto prepare = worker_stub_->Prepare(&prepare_context);
    auto layer = cpu_stub_->ComputeLayer(&layer_context);
    v1::ExecuteResponse told;
    ASSERT_TRUE(execute->Read(&told));
    v1::PrepareRequest retire;
    retire.set_phase(v1::PREPARE_PHASE_RETIRE);
    retire.set_epoch(1);
    prepare->Write(retire);
    layer->Write(LayerRequest(ToyPost(1, 1), 1));
    execute_context.TryCancel();
    prepare_context.TryCancel();
    layer_context.TryCancel();
    execute->Finish();
    prepare->Finish();
    layer->Finish();
  }
  worker_->events().StateChanged();
  server_->Shutdown(std::chrono::milliseconds(0));  // waits for every reactor
}

}  // namespace
}  // namespace isotherm::cpu
