#include "gpu_worker/service/cpu_worker_connector.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/shm/arena_layout.h"
#include "common/shm/handoff.h"
#include "gpu_worker/engine/relayed_cold_attachment.h"
#include "gpu_worker/engine/shm_cold_attachment.h"
#include "gpu_worker/service/grpc_cold_attachment.h"
#include "isotherm/v1/cpu_worker.grpc.pb.h"

namespace isotherm::gpu {
namespace {

constexpr std::chrono::milliseconds kPollEvery{50};
// After an answer that will hardly change: another model, or memory that cannot be used.
constexpr std::chrono::milliseconds kRefusedEvery{1000};
constexpr std::chrono::milliseconds kRpcDeadline{2000};
// Larger steps are prefill passes of a GPU, which reads cold neurons itself.
constexpr int32_t kMostSharedRows = 256;

}  // namespace

CpuWorkerConnector::CpuWorkerConnector(const Options& options, const ModelFile& model,
                                       StepEngine& engine)
    : options_(options), model_(model), engine_(engine) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "cpu-connector");
    Loop();
  });
}

CpuWorkerConnector::~CpuWorkerConnector() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::StatusOr<std::shared_ptr<ColdAttachment>> CpuWorkerConnector::TryAttach() {
  const std::shared_ptr<grpc::Channel> channel = rpc::MakeChannel(options_.address);
  const auto stub = v1::CpuWorkerService::NewStub(channel);
  const BundleLayout& layout = model_.bundle_layout();
  v1::OpenArenaRequest request;
  request.set_layout_hash(shm::LayoutHash(ArenaShapeOf(layout)));
  request.set_model_digest(model_.config().digest);
  request.set_peer_instance_id(options_.instance_id);
  request.set_max_rows(std::min(options_.max_rows, kMostSharedRows));
  request.set_device_rings(options_.device_rings && options_.transport == ColdTransport::kShm);
  v1::OpenArenaResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kRpcDeadline);
  if (const grpc::Status status = stub->OpenArena(&context, request, &response); !status.ok()) {
    return rpc::FromGrpcStatus(status);
  }
  if (options_.transport == ColdTransport::kGrpc) {
    auto stream = std::make_shared<GrpcColdAttachment>(channel, layout, response.nonce_low());
    if (!options_.device_rings) return stream;
    return RelayedColdAttachment::Make(std::move(stream), layout, request.max_rows());
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      shm::Handoff handoff,
      shm::TakeHandoff(response.socket_path(), response.handoff_token(), kRpcDeadline));
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<ShmColdAttachment> attachment,
      ShmColdAttachment::Attach(std::move(handoff),
                                {.nonce = {response.nonce_high(), response.nonce_low()},
                                 .arena_bytes = response.arena_bytes(),
                                 .control_bytes = response.control_bytes(),
                                 .arena_is_model_file = response.arena_is_model_file()},
                                model_));
  return std::shared_ptr<ColdAttachment>(std::move(attachment));
}

void CpuWorkerConnector::Loop() {
  // Not reached: said once, however the transport words it.
  static const std::string kAway = "away";
  std::shared_ptr<ColdAttachment> attached;
  std::string told;  // why there is none, as logged last
  std::unique_lock lock(mu_);
  while (!stop_) {
    std::chrono::milliseconds wait = kPollEvery;
    if (attached == nullptr || !attached->link().alive()) {
      if (attached != nullptr) {
        LogWarning("the cpu_worker is lost; cold neurons are computed here until it is back");
        told = kAway;
      }
      lock.unlock();
      absl::StatusOr<std::shared_ptr<ColdAttachment>> fresh = TryAttach();
      lock.lock();
      if (fresh.ok()) {
        // Pinning a large arena takes seconds; steps go on meanwhile.
        lock.unlock();
        if (absl::Status set = engine_.SetCold(*fresh); !set.ok()) fresh = std::move(set);
        lock.lock();
      }
      if (fresh.ok()) {
        attached = *std::move(fresh);
        LogInfo("attached to the cpu_worker by {}",
                options_.transport == ColdTransport::kShm ? "shared memory" : "gRPC");
        told.clear();
      } else {
        const std::string why(fresh.status().message());
        const bool away = absl::IsUnavailable(fresh.status());
        if (const std::string& reason = away ? kAway : why; reason != told) {
          LogInfo("waiting for the cpu_worker: {}", why);
          told = reason;
        }
        if (!away) wait = kRefusedEvery;
      }
      if (attached != nullptr && !attached->link().alive())
        attached = nullptr;  // the engine keeps its arena
    }
    changed_.wait_for(lock, wait, [this] { return stop_; });
  }
}

}  // namespace isotherm::gpu
