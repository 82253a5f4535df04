#include "gpu_worker/engine/shm_cold_attachment.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/shm/file_mapping.h"

namespace isotherm::gpu {

shm::ArenaShape ArenaShapeOf(const BundleLayout& layout) {
  return {.dtype = layout.dtype,
          .rows = layout.rows,
          .model_dim = layout.model_dim,
          .num_neurons = layout.num_neurons,
          .num_layers = layout.num_layers,
          .bundle_bytes = layout.bundle_bytes};
}

namespace {

absl::Status CheckArenaBytes(const shm::ArenaGeometry& geometry, const ShmHandshake& handshake) {
  if (geometry.arena_bytes == handshake.arena_bytes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the cpu_worker's arena has ", handshake.arena_bytes, " bytes, this model's ",
                   geometry.arena_bytes, "; start both with the same model file"));
}

// Where the neurons lie in the arena that the cpu_worker speaks of.
absl::StatusOr<shm::ArenaGeometry> GeometryOf(const ModelFile& model,
                                              const ShmHandshake& handshake) {
  const shm::ArenaShape shape = ArenaShapeOf(model.bundle_layout());
  if (!handshake.arena_is_model_file) return shm::ArenaGeometry::Make(shape);
  const BundleFile* bundles = model.bundle_file();
  if (bundles == nullptr) {
    return absl::FailedPreconditionError(
        "the cpu_worker serves a bundle-ordered model file, this one's is none; start both with "
        "the same model file");
  }
  return shm::ArenaGeometry::MakeInFile(shape, bundles->layer_offsets,
                                        model.gguf().identity().bytes);
}

absl::StatusOr<shm::Mapping> MapArena(int fd, const shm::ArenaGeometry& geometry,
                                      const ShmHandshake& handshake, const ModelFile& model) {
  if (handshake.arena_is_model_file) {
    // The file's header was checked when the model was opened: it is that file or another.
    return shm::MapFile(fd, model.gguf().identity(), "the model file", {.may_be_opened = true});
  }
  ISOTHERM_ASSIGN_OR_RETURN(shm::Mapping arena,
                            shm::MapShared(fd, geometry.arena_bytes, shm::Access::kReadOnly));
  ISOTHERM_RETURN_IF_ERROR(shm::CheckArenaHeader(geometry, arena.data()));
  return arena;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShmColdAttachment>> ShmColdAttachment::Attach(
    shm::Handoff handoff, const ShmHandshake& handshake, const ModelFile& model) {
  const BundleLayout& layout = model.bundle_layout();
  const shm::ArenaShape shape = ArenaShapeOf(layout);
  ISOTHERM_ASSIGN_OR_RETURN(const shm::ArenaGeometry geometry, GeometryOf(model, handshake));
  ISOTHERM_RETURN_IF_ERROR(CheckArenaBytes(geometry, handshake));
  ISOTHERM_ASSIGN_OR_RETURN(shm::Mapping arena,
                            MapArena(handoff.arena.get(), geometry, handshake, model));
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<shm::ControlRegion> region,
      shm::ControlRegion::Attach(std::move(handoff.control),
                                 {.region_bytes = handshake.control_bytes,
                                  .nonce = handshake.nonce,
                                  .layout_hash = shm::LayoutHash(shape),
                                  .model_dim = static_cast<int32_t>(layout.model_dim),
                                  .num_neurons = static_cast<int32_t>(layout.num_neurons),
                                  .num_layers = static_cast<int32_t>(layout.num_layers),
                                  .creator = handoff.peer}));
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<shm::SlotClient> client,
                            shm::SlotClient::Create(*region));
  return std::unique_ptr<ShmColdAttachment>(
      new ShmColdAttachment(layout, geometry, std::move(arena), std::move(region),
                            std::move(client), std::move(handoff.connection)));
}

ShmColdAttachment::ShmColdAttachment(const BundleLayout& layout, const shm::ArenaGeometry& geometry,
                                     shm::Mapping arena, std::unique_ptr<shm::ControlRegion> region,
                                     std::unique_ptr<shm::SlotClient> client, UniqueFd connection)
    : layout_(layout),
      geometry_(geometry),
      arena_(std::move(arena)),
      region_(std::move(region)),
      client_(std::move(client)),
      link_(*client_, layout) {
  watch_ = std::make_unique<shm::PeerWatch>(
      std::move(connection), *region_,
      shm::PeerWatch::Callbacks{.on_dead = [this](const absl::Status&) { client_->Abort(); },
                                .wake = [this] { client_->WakeSelf(); }});
}

ShmColdAttachment::~ShmColdAttachment() { client_->Abort(); }

BundleView ShmColdAttachment::Layer(int64_t layer) const {
  return {.dtype = layout_.dtype,
          .rows = layout_.rows,
          .model_dim = layout_.model_dim,
          .row_bytes = layout_.row_bytes,
          .bundle_bytes = layout_.bundle_bytes,
          .data = arena_.data() + geometry_.LayerOffset(layer),
          .num_neurons = layout_.num_neurons};
}

}  // namespace isotherm::gpu
