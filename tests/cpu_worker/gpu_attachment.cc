#include "tests/cpu_worker/gpu_attachment.h"

#include <utility>

#include "common/base/status_macros.h"

namespace isotherm::shm {

absl::StatusOr<std::unique_ptr<GpuAttachment>> GpuAttachment::Open(const ArenaOffer& offer,
                                                                   Options options) {
  std::unique_ptr<GpuAttachment> attachment(new GpuAttachment());
  ISOTHERM_ASSIGN_OR_RETURN(attachment->geometry_, ArenaGeometry::Make(options.shape));
  if (offer.arena_bytes != attachment->geometry_.arena_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the cpu_worker's arena has ", offer.arena_bytes, " bytes, our model's has ",
                     attachment->geometry_.arena_bytes, "; both workers must load one model file"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(Handoff handoff, TakeHandoff(offer.socket_path, offer.handoff_token,
                                                         options.handoff_timeout));
  ISOTHERM_ASSIGN_OR_RETURN(attachment->arena_,
                            MapShared(handoff.arena.get(), offer.arena_bytes, Access::kReadOnly));
  ISOTHERM_RETURN_IF_ERROR(CheckArenaHeader(attachment->geometry_, attachment->arena_.data()));
  attachment->arena_fd_ = std::move(handoff.arena);

  const ControlRegion::Expected expected{
      .region_bytes = offer.control_bytes,
      .nonce = offer.nonce,
      .layout_hash = LayoutHash(options.shape),
      .model_dim = static_cast<int32_t>(options.shape.model_dim),
      .num_neurons = static_cast<int32_t>(options.shape.num_neurons),
      .num_layers = static_cast<int32_t>(options.shape.num_layers),
      .creator = handoff.peer};
  ISOTHERM_ASSIGN_OR_RETURN(attachment->control_,
                            ControlRegion::Attach(std::move(handoff.control), expected));
  ISOTHERM_ASSIGN_OR_RETURN(attachment->client_,
                            SlotClient::Create(*attachment->control_, options.wait));
  SlotClient* const client = attachment->client_.get();
  attachment->watch_ = std::make_unique<PeerWatch>(
      std::move(handoff.connection), *attachment->control_,
      PeerWatch::Callbacks{.on_dead =
                               [client, on_dead = std::move(options.on_dead)](absl::Status why) {
                                 client->Abort();
                                 if (on_dead) on_dead(std::move(why));
                               },
                           .wake = [client] { client->WakeSelf(); }},
      options.watch);
  return attachment;
}

GpuAttachment::~GpuAttachment() {
  if (client_ != nullptr) client_->Abort();
}

}  // namespace isotherm::shm
