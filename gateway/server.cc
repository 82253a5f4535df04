#include "gateway/server.h"

#include <utility>

#include "common/base/error_reason.h"
#include "common/rpc/server.h"
#include "gateway/service/grpc_placement_client.h"
#include "gateway/service/grpc_worker_client.h"
#include "gateway/service/inference_service.h"

namespace isotherm {
namespace {

constexpr char kServiceName[] = "isotherm.v1.InferenceService";
constexpr int kMaxRequestBytes = 4 << 20;
// Streams that were cut get so long to be told.
constexpr auto kGoodbye = std::chrono::milliseconds(500);

}  // namespace

GatewayServer::GatewayServer(const GatewayOptions& options, std::function<void()> on_ready)
    : on_ready_(std::move(on_ready)),
      models_(options.model_name, options.alias),
      gpu_(std::make_unique<GrpcWorkerClient>(WorkerKind::kGpu, options.gpu_worker)),
      cpu_(std::make_unique<GrpcWorkerClient>(WorkerKind::kCpu, options.cpu_worker)),
      placement_(std::make_unique<GrpcPlacementClient>(options.placement)),
      scheduler_(std::make_unique<Scheduler>(options.scheduler, *gpu_, *cpu_, Clock::Real())),
      thread_(std::make_unique<SchedulerThread>(*scheduler_, Clock::Real(),
                                                [this](const SchedulerState&) { UpdateHealth(); })),
      service_(std::make_unique<InferenceService>(
          GenerateLimits{.max_time = options.max_time,
                         .reader_timeout = options.scheduler.reader_timeout},
          models_, *thread_, [this] { return placement_->connected(); })) {}

absl::StatusOr<std::unique_ptr<GatewayServer>> GatewayServer::Start(
    const GatewayOptions& options, std::function<void()> on_ready) {
  std::unique_ptr<GatewayServer> gateway(new GatewayServer(options, std::move(on_ready)));
  auto server = rpc::Server::Start(
      {.listen = options.listen, .max_receive_bytes = kMaxRequestBytes}, {gateway->service_.get()});
  if (!server.ok()) return server.status();
  gateway->address_ = (*server)->address();
  {
    absl::MutexLock lock(&gateway->mu_);
    gateway->server_ = *std::move(server);
  }
  gateway->gpu_->Start(*gateway->thread_);
  if (!options.cpu_worker.empty()) gateway->cpu_->Start(*gateway->thread_);
  if (!options.placement.empty()) gateway->placement_->Start(*gateway->thread_);
  return gateway;
}

GatewayServer::~GatewayServer() { Drain(std::chrono::milliseconds(0)); }

const std::string& GatewayServer::address() const { return address_; }

int64_t GatewayServer::open_answers() const { return service_->open_answers(); }

void GatewayServer::SetModel(std::shared_ptr<const TextModel> model) {
  const auto vocab_size = static_cast<TokenId>(model->facts().vocab_size);
  const int32_t num_layers = model->facts().num_layers;
  thread_->Post([vocab_size, num_layers](Scheduler& scheduler) {
    scheduler.SetModelLimits(vocab_size, num_layers);
  });
  models_.Set(std::move(model));
  UpdateHealth();
}

void GatewayServer::UpdateHealth() {
  bool first = false;
  {
    absl::MutexLock lock(&mu_);
    if (server_ == nullptr) return;
    const SchedulerState state = thread_->state();
    const bool serving = models_.Get() != nullptr && state.gpu_attached && !state.draining;
    server_->SetServing("", serving);
    server_->SetServing(kServiceName, serving);
    first = serving && !was_ready_;
    was_ready_ |= serving;
  }
  if (first) on_ready_();
}

bool GatewayServer::Drain(std::chrono::milliseconds timeout) {
  if (std::exchange(drained_, true)) return true;
  bool finished = true;
  std::unique_ptr<rpc::Server> server;
  {
    absl::MutexLock lock(&mu_);
    if (server_ != nullptr) {
      server_->SetServing("", false);
      server_->SetServing(kServiceName, false);
    }
    server = std::move(server_);
  }
  thread_->Post([](Scheduler& scheduler) { scheduler.Drain(); });
  finished = thread_->WaitUntilEmpty(std::chrono::steady_clock::now() + timeout);
  if (!finished) {
    thread_->Post([](Scheduler& scheduler) {
      scheduler.CancelAll(
          WithErrorReason(absl::UnavailableError("the server is shutting down; the answer was cut"),
                          {.reason = "DRAINING", .retry_after = std::chrono::milliseconds(1000)}));
    });
  }
  if (server != nullptr) server->Shutdown(kGoodbye);
  gpu_->Stop();
  cpu_->Stop();
  placement_->Stop();
  thread_->Stop();
  return finished;
}

}  // namespace isotherm
