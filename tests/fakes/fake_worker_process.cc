#include "tests/fakes/fake_worker_process.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <utility>

#include "common/base/check.h"
#include "common/rpc/server.h"
#include "common/rpc/step_convert.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace isotherm {

using Stream = grpc::ServerReaderWriter<v1::ExecuteResponse, v1::ExecuteRequest>;

// Puts the workers' events on whatever stream is open. Called with the lock held.
class FakeWorkerProcess::Streams : public WorkerEvents {
 public:
  struct Open {
    Stream* stream = nullptr;
    grpc::ServerContext* context = nullptr;
  };
  void OnHello(WorkerKind kind, WorkerHello hello) override {
    v1::ExecuteResponse response;
    *response.mutable_hello() = rpc::ToProto(hello);
    Write(kind, response);
  }
  void OnResult(WorkerKind kind, StepResult result) override {
    v1::ExecuteResponse response;
    *response.mutable_result() = rpc::ToProto(result);
    Write(kind, response);
  }
  void OnDisconnected(WorkerKind kind, absl::Status) override {
    if (open[kind].context != nullptr) open[kind].context->TryCancel();
  }
  void Write(WorkerKind kind, const v1::ExecuteResponse& response) {
    if (open[kind].stream != nullptr) open[kind].stream->Write(response);
  }
  std::map<WorkerKind, Open> open;
};

class FakeWorkerProcess::Service : public v1::WorkerService::Service {
 public:
  Service(FakeWorkerProcess& owner, WorkerKind kind) : owner_(owner), kind_(kind) {}

  grpc::Status Execute(grpc::ServerContext* context, Stream* stream) override {
    const bool gpu = kind_ == WorkerKind::kGpu;
    {
      absl::MutexLock lock(&owner_.mu_);
      owner_.streams_->open[kind_] = {stream, context};
      gpu ? owner_.workers_.StartGpu() : owner_.workers_.StartCpu();
    }
    v1::ExecuteRequest request;
    while (stream->Read(&request)) {
      absl::MutexLock lock(&owner_.mu_);
      WorkerClient& worker = gpu ? owner_.workers_.gpu() : owner_.workers_.cpu();
      if (request.has_abort()) {
        worker.Abort();
      } else {
        auto step = rpc::FromProto(request.step());
        ISOTHERM_CHECK(step.ok());
        worker.SendStep(*step);
      }
      owner_.pending_ = true;
    }
    absl::MutexLock lock(&owner_.mu_);
    owner_.streams_->open[kind_] = {};
    if (gpu && owner_.workers_.gpu_up()) owner_.workers_.KillGpu();
    if (!gpu && owner_.workers_.cpu_up()) owner_.workers_.KillCpu();
    return grpc::Status::OK;
  }

 private:
  FakeWorkerProcess& owner_;
  const WorkerKind kind_;
};

FakeWorkerProcess::FakeWorkerProcess(const FakeStepWorkers::Options& options)
    : workers_(options), streams_(std::make_unique<Streams>()) {
  workers_.Attach(streams_.get());
  const auto start = [this](WorkerKind kind, std::unique_ptr<Service>& service) {
    service = std::make_unique<Service>(*this, kind);
    auto server = rpc::Server::Start({.listen = "127.0.0.1:0"}, {service.get()});
    ISOTHERM_CHECK(server.ok());
    return *std::move(server);
  };
  gpu_server_ = start(WorkerKind::kGpu, gpu_service_);
  cpu_server_ = start(WorkerKind::kCpu, cpu_service_);
  thread_ = std::thread([this] { Loop(); });
}

FakeWorkerProcess::~FakeWorkerProcess() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
  gpu_server_->Shutdown(std::chrono::milliseconds(0));
  cpu_server_->Shutdown(std::chrono::milliseconds(0));
}

const std::string& FakeWorkerProcess::gpu_address() const { return gpu_server_->address(); }
const std::string& FakeWorkerProcess::cpu_address() const { return cpu_server_->address(); }

void FakeWorkerProcess::AllowSteps(int64_t count) {
  absl::MutexLock lock(&mu_);
  allowed_ = count;
  pending_ = true;
}

void FakeWorkerProcess::KillGpu() {
  absl::MutexLock lock(&mu_);
  if (workers_.gpu_up()) workers_.KillGpu();
}

void FakeWorkerProcess::Loop() {
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    const auto wanted = [this] { return stopping_ || (pending_ && allowed_ != 0); };
    mu_.Await(absl::Condition(&wanted));
    if (stopping_) return;
    pending_ = workers_.RunStep();
    if (pending_ && allowed_ > 0) --allowed_;
    while (workers_.DeliverCpu()) {
    }
    while (workers_.DeliverGpu()) {
    }
  }
}

}  // namespace isotherm
