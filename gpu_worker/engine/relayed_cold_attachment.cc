#include "gpu_worker/engine/relayed_cold_attachment.h"

#include <pthread.h>

#include <chrono>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/shm/memory_limits.h"

namespace isotherm::gpu {
namespace {

// How soon a death behind the relay is noticed while nothing is asked.
constexpr std::chrono::milliseconds kLookEvery{50};

}  // namespace

absl::StatusOr<std::unique_ptr<RelayedColdAttachment>> RelayedColdAttachment::Make(
    std::shared_ptr<ColdAttachment> behind, const BundleLayout& layout, int32_t max_rows,
    const shm::WaitOptions& wait) {
  shm::Nonce nonce = shm::RandomNonce();
  nonce.low = behind->link().hash_nonce();
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<shm::ControlRegion> served,
      shm::ControlRegion::Create({.shape = {.max_rows = max_rows,
                                            .model_dim = static_cast<int32_t>(layout.model_dim),
                                            .num_neurons = static_cast<int32_t>(layout.num_neurons),
                                            .num_layers = static_cast<int32_t>(layout.num_layers)},
                                  .nonce = nonce},
                                 shm::ReadMemoryLimits()));
  std::unique_ptr<shm::ControlRegion> used = served->GpuViewOfSameMapping();
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<shm::SlotServer> server,
                            shm::SlotServer::Create(*served, wait, /*device_rings=*/true));
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<shm::SlotClient> client,
                            shm::SlotClient::Create(*used, wait));
  return std::unique_ptr<RelayedColdAttachment>(
      new RelayedColdAttachment(std::move(behind), layout, std::move(served), std::move(used),
                                std::move(server), std::move(client)));
}

RelayedColdAttachment::RelayedColdAttachment(std::shared_ptr<ColdAttachment> behind,
                                             const BundleLayout& layout,
                                             std::unique_ptr<shm::ControlRegion> served,
                                             std::unique_ptr<shm::ControlRegion> used,
                                             std::unique_ptr<shm::SlotServer> server,
                                             std::unique_ptr<shm::SlotClient> client)
    : behind_(std::move(behind)),
      layout_(layout),
      served_(std::move(served)),
      used_(std::move(used)),
      server_(std::move(server)),
      client_(std::move(client)),
      link_(*client_, layout) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "cold-relay");
    Serve();
  });
}

RelayedColdAttachment::~RelayedColdAttachment() {
  client_->Abort();
  server_->WakeSelf();
  thread_.join();
}

void RelayedColdAttachment::Serve() {
  while (behind_->link().alive()) {
    const absl::StatusOr<shm::ColdLayerWork> work =
        server_->Next(std::chrono::steady_clock::now() + kLookEvery);
    if (absl::IsDeadlineExceeded(work.status())) continue;
    if (!work.ok()) break;
    shm::ColdLayerOutcome outcome;
    if (const absl::Status status = Relay(*work, &outcome); !status.ok()) {
      outcome = {.status = absl::IsAborted(status)            ? shm::ColdLayerStatus::kStaleEpoch
                           : absl::IsDeadlineExceeded(status) ? shm::ColdLayerStatus::kCancelled
                                                              : shm::ColdLayerStatus::kPoison};
      // Who waits is told that the peer is gone, not that it answers nonsense.
      if (!behind_->link().alive()) break;
    }
    if (!server_->Finish(*work, outcome).ok()) break;
  }
  server_->Abort();
}

absl::Status RelayedColdAttachment::Relay(const shm::ColdLayerWork& work,
                                          shm::ColdLayerOutcome* outcome) {
  const shm::ColdLayerHeader& header = work.header;
  ColdLink& link = behind_->link();
  if (header.layer == shm::kEndOfStep)
    return link.EndOfStep(header.step_id, header.epoch, header.attempt, header.deadline);
  if (work.cancelled) {
    outcome->status = shm::ColdLayerStatus::kCancelled;
    return absl::OkStatus();
  }
  ISOTHERM_RETURN_IF_ERROR(link.Post({.step_id = header.step_id,
                                      .epoch = header.epoch,
                                      .layer = header.layer,
                                      .attempt = header.attempt,
                                      .num_rows = header.num_rows,
                                      .cut = header.cut,
                                      .z = work.z,
                                      .active = work.active,
                                      .row_keys = work.row_keys,
                                      .deadline = header.deadline}));
  ISOTHERM_ASSIGN_OR_RETURN(const ColdResult result, link.Wait(header.deadline));
  std::memcpy(work.partial, result.partial,
              static_cast<size_t>(header.num_rows * layout_.model_dim) * sizeof(float));
  outcome->work_hash = result.work_hash;
  outcome->neurons = result.neurons;
  outcome->compute_us = result.compute_us;
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
