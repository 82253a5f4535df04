#include "gateway/service/grpc_worker_client.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/process/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "gateway/service/execute_stream.h"

namespace isotherm {
namespace {

const char* Name(WorkerKind kind) { return kind == WorkerKind::kGpu ? "gpu_worker" : "cpu_worker"; }

}  // namespace

GrpcWorkerClient::GrpcWorkerClient(WorkerKind kind, std::string address)
    : kind_(kind), address_(std::move(address)) {}

GrpcWorkerClient::~GrpcWorkerClient() { Stop(); }

void GrpcWorkerClient::Start(SchedulerThread& scheduler) {
  thread_ = std::thread([this, &scheduler] {
    pthread_setname_np(pthread_self(), kind_ == WorkerKind::kGpu ? "gpu_stream" : "cpu_stream");
    Loop(scheduler);
  });
}

void GrpcWorkerClient::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (open_ != nullptr) open_->Cancel();
  }
  if (thread_.joinable()) thread_.join();
}

void GrpcWorkerClient::Loop(SchedulerThread& scheduler) {
  const auto channel = rpc::MakeChannel(address_);
  const auto stub = v1::WorkerService::NewStub(channel);
  auto backoff = rpc::kFirstBackoff;
  bool said_so = false;
  while (true) {
    auto greeted = std::make_shared<std::atomic<bool>>(false);
    const auto on_message = [this, &scheduler, greeted](ExecuteStream& self,
                                                        const v1::ExecuteResponse& message) {
      if (message.has_hello()) {
        greeted->store(true);
        scheduler.Post([this, stream = self.shared_from_this(),
                        hello = rpc::FromProto(message.hello())](Scheduler& s) mutable {
          current_ = std::move(stream);
          s.OnHello(kind_, std::move(hello));
        });
        return true;
      }
      if (!message.has_result() || !greeted->load()) return false;
      auto result = rpc::FromProto(message.result());
      if (!result.ok()) {
        LogError("{} sent a bad result: {}", Name(kind_), std::string(result.status().message()));
        return false;
      }
      scheduler.Post([this, stream = &self, result = *std::move(result)](Scheduler& s) mutable {
        if (current_.get() == stream) s.OnResult(kind_, std::move(result));
      });
      return true;
    };
    const auto stream = std::make_shared<ExecuteStream>(on_message);
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
      stream->Start(*stub);
      open_ = stream;
    }
    const grpc::Status status = stream->WaitUntilDone();
    bool ours = false;
    {
      absl::MutexLock lock(&mu_);
      open_.reset();
      ours = stopping_;
    }
    if (greeted->load()) {
      if (!ours) LogWarning("lost the {}: {}", Name(kind_), status.error_message());
      said_so = true;
      backoff = rpc::kFirstBackoff;
      scheduler.Post([this, stream, why = rpc::FromGrpcStatus(status)](Scheduler& s) {
        if (current_ != stream) return;
        current_.reset();
        s.OnDisconnected(kind_, why);
      });
    } else if (!said_so) {
      LogInfo("waiting for the {} at {}", Name(kind_), address_);
      said_so = true;
    }
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(backoff));
    backoff = std::min(2 * backoff, rpc::kMaxBackoff);
  }
}

void GrpcWorkerClient::SendStep(const StepRequest& step) {
  if (current_ == nullptr) return;
  v1::ExecuteRequest request;
  *request.mutable_step() = rpc::ToProto(step);
  current_->Send(std::move(request));
}

void GrpcWorkerClient::SendKvDemand(const KvDemand& demand) {
  if (current_ == nullptr) return;
  v1::ExecuteRequest request;
  *request.mutable_kv_demand() = rpc::ToProto(demand);
  current_->Send(std::move(request));
}

void GrpcWorkerClient::Abort() {
  if (current_ == nullptr) return;
  v1::ExecuteRequest request;
  request.mutable_abort();
  current_->Send(std::move(request));
}

}  // namespace isotherm
