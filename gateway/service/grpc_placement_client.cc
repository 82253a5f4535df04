#include "gateway/service/grpc_placement_client.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "common/process/log.h"
#include "common/rpc/channel.h"
#include "isotherm/v1/placement.grpc.pb.h"

namespace isotherm {

GrpcPlacementClient::GrpcPlacementClient(std::string address) : address_(std::move(address)) {}

GrpcPlacementClient::~GrpcPlacementClient() { Stop(); }

void GrpcPlacementClient::Start(SchedulerThread& scheduler) {
  thread_ = std::thread([this, &scheduler] {
    pthread_setname_np(pthread_self(), "placement");
    Loop(scheduler);
  });
}

void GrpcPlacementClient::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  if (thread_.joinable()) thread_.join();
}

bool GrpcPlacementClient::connected() const {
  absl::MutexLock lock(&mu_);
  return connected_;
}

void GrpcPlacementClient::Loop(SchedulerThread& scheduler) {
  const auto stub = v1::PlacementService::NewStub(rpc::MakeChannel(address_));
  auto backoff = rpc::kFirstBackoff;
  bool said_so = false;
  while (true) {
    grpc::ClientContext context;
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
      context_ = &context;
    }
    const auto reader = stub->Watch(&context, v1::WatchRequest());
    bool heard = false;
    v1::WatchResponse response;
    while (reader->Read(&response)) {
      if (!heard) {
        heard = true;
        absl::MutexLock lock(&mu_);
        connected_ = true;
      }
      const int64_t epoch = response.plan().epoch();
      if (epoch < 0) break;
      if (response.state() == v1::PLAN_STATE_LIVE) {
        LogInfo("placement epoch {} is live", epoch);
        scheduler.Post([epoch](Scheduler& s) { s.OnLive(epoch); });
      } else if (response.state() == v1::PLAN_STATE_RETIRED) {
        scheduler.Post([epoch](Scheduler& s) { s.OnRetired(epoch); });
      }
    }
    context.TryCancel();
    const grpc::Status status = reader->Finish();
    {
      absl::MutexLock lock(&mu_);
      context_ = nullptr;
      connected_ = false;
      if (stopping_) return;
    }
    if (heard) {
      LogWarning("lost the placement_service: {}; the last plan serves on", status.error_message());
      backoff = rpc::kFirstBackoff;
      said_so = true;
    } else if (!said_so) {
      LogInfo("waiting for the placement_service at {}", address_);
      said_so = true;
    }
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(backoff));
    backoff = std::min(2 * backoff, rpc::kMaxBackoff);
  }
}

}  // namespace isotherm
