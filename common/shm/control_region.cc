#include "common/shm/control_region.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {
namespace {

absl::Status Mismatch(absl::string_view field) {
  return absl::FailedPreconditionError(
      absl::StrCat("control region: its ", field,
                   " is not the handshake's; both workers must run one version and one model"));
}

absl::Status CheckHeader(const ControlHeader& header, const ControlRegion::Expected& expected) {
  if (header.magic != kControlMagic) return Mismatch("magic");
  if (header.version != kControlVersion) return Mismatch("version");
  if (header.header_bytes != sizeof(ControlHeader)) return Mismatch("header size");
  if (header.region_bytes != static_cast<uint64_t>(expected.region_bytes)) return Mismatch("size");
  if (header.layout_hash != expected.layout_hash) return Mismatch("layout hash");
  if (Nonce{header.nonce_high, header.nonce_low} != expected.nonce) return Mismatch("nonce");
  if (header.model_dim != expected.model_dim) return Mismatch("model_dim");
  if (header.num_neurons != expected.num_neurons) return Mismatch("num_neurons");
  if (header.num_layers != expected.num_layers) return Mismatch("num_layers");
  if (expected.creator.start_ticks != 0 &&
      ProcessIdentity{header.creator_pid, header.creator_start_ticks} != expected.creator) {
    return Mismatch("creator");
  }
  return absl::OkStatus();
}

}  // namespace

ControlRegion::ControlRegion(Side side, UniqueFd fd, Mapping mapping, std::byte* data,
                             const ControlGeometry& geometry, const Nonce& nonce,
                             uint64_t first_sequence)
    : side_(side),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      data_(data),
      geometry_(geometry),
      nonce_(nonce),
      first_sequence_(first_sequence) {}

absl::StatusOr<std::unique_ptr<ControlRegion>> ControlRegion::Create(const CreateOptions& options,
                                                                     const MemoryLimits& limits) {
  ISOTHERM_ASSIGN_OR_RETURN(const ControlGeometry geometry, ControlGeometry::Make(options.shape));
  ISOTHERM_ASSIGN_OR_RETURN(UniqueFd fd,
                            CreateSealedMemory("isotherm-control", geometry.region_bytes, limits));
  ISOTHERM_ASSIGN_OR_RETURN(Mapping mapping,
                            MapShared(fd.get(), geometry.region_bytes, Access::kReadWrite));
  const ProcessIdentity self = OwnIdentity();
  const ControlHeader header{
      .magic = kControlMagic,
      .version = kControlVersion,
      .header_bytes = sizeof(ControlHeader),
      .region_bytes = static_cast<uint64_t>(geometry.region_bytes),
      .layout_hash = options.layout_hash,
      .nonce_high = options.nonce.high,
      .nonce_low = options.nonce.low,
      .max_rows = options.shape.max_rows,
      .model_dim = options.shape.model_dim,
      .num_neurons = options.shape.num_neurons,
      .num_layers = options.shape.num_layers,
      .num_slots = options.shape.num_slots,
      .reserved = 0,
      .first_sequence = options.first_sequence,
      .creator_pid = self.pid,
      .creator_start_ticks = self.start_ticks,
  };
  std::byte* const data = mapping.data();
  std::memcpy(data, &header, sizeof(header));
  std::unique_ptr<ControlRegion> region(new ControlRegion(Side::kCpu, std::move(fd),
                                                          std::move(mapping), data, geometry,
                                                          options.nonce, options.first_sequence));
  // Every slot starts as if its turn one round ago were over: no word equals a sequence to come.
  for (int32_t i = 0; i < options.shape.num_slots; ++i) {
    const uint64_t turn = options.first_sequence + static_cast<uint64_t>(i);
    const uint64_t before = turn - static_cast<uint64_t>(options.shape.num_slots);
    region->request(turn).sequence.store(before, std::memory_order_relaxed);
    region->result(turn).taken.store(before, std::memory_order_relaxed);
    region->result(turn).sequence.store(before, std::memory_order_relaxed);
  }
  region->Words(Side::kGpu)
      .cancelled_through.store(options.first_sequence - 1, std::memory_order_relaxed);
  region->own_words().pid.store(self.pid, std::memory_order_relaxed);
  region->own_words().start_ticks.store(self.start_ticks, std::memory_order_release);
  return region;
}

absl::StatusOr<std::unique_ptr<ControlRegion>> ControlRegion::Attach(UniqueFd fd,
                                                                     const Expected& expected) {
  if (expected.region_bytes < static_cast<int64_t>(2 * kControlPage)) {
    return absl::FailedPreconditionError(absl::StrCat("control region: the handshake said ",
                                                      expected.region_bytes, " bytes, too few"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(Mapping mapping,
                            MapShared(fd.get(), expected.region_bytes, Access::kReadWrite));
  const ControlHeader header = Snapshot(*reinterpret_cast<const ControlHeader*>(mapping.data()));
  ISOTHERM_RETURN_IF_ERROR(CheckHeader(header, expected));
  const ControlShape shape{.max_rows = header.max_rows,
                           .model_dim = header.model_dim,
                           .num_neurons = header.num_neurons,
                           .num_layers = header.num_layers,
                           .num_slots = header.num_slots};
  const absl::StatusOr<ControlGeometry> geometry = ControlGeometry::Make(shape);
  if (!geometry.ok()) return absl::FailedPreconditionError(geometry.status().message());
  if (geometry->region_bytes != expected.region_bytes) return Mismatch("size");
  std::byte* const data = mapping.data();
  std::unique_ptr<ControlRegion> region(new ControlRegion(Side::kGpu, std::move(fd),
                                                          std::move(mapping), data, *geometry,
                                                          expected.nonce, header.first_sequence));
  const ProcessIdentity self = OwnIdentity();
  region->own_words().pid.store(self.pid, std::memory_order_relaxed);
  region->own_words().start_ticks.store(self.start_ticks, std::memory_order_release);
  return region;
}

std::unique_ptr<ControlRegion> ControlRegion::GpuViewOfSameMapping() const {
  return std::unique_ptr<ControlRegion>(new ControlRegion(Side::kGpu, UniqueFd(), Mapping(), data_,
                                                          geometry_, nonce_, first_sequence_));
}

SideWords& ControlRegion::Words(Side side) const {
  const int64_t offset =
      side == Side::kGpu ? geometry_.gpu_words_offset : geometry_.cpu_words_offset;
  return *reinterpret_cast<SideWords*>(data_ + offset);
}

std::byte* ControlRegion::Slot(uint64_t sequence) const {
  // A power of two divides 2^64, so that the ring goes on evenly when sequences wrap.
  const uint64_t idx = sequence & static_cast<uint64_t>(geometry_.shape.num_slots - 1);
  return data_ + geometry_.slots_offset + static_cast<int64_t>(idx) * geometry_.slot_stride;
}

SlotRequest& ControlRegion::request(uint64_t sequence) const {
  return *reinterpret_cast<SlotRequest*>(Slot(sequence));
}
SlotResult& ControlRegion::result(uint64_t sequence) const {
  return *reinterpret_cast<SlotResult*>(Slot(sequence) + geometry_.result_offset);
}
uint16_t* ControlRegion::z(uint64_t sequence) const {
  return reinterpret_cast<uint16_t*>(Slot(sequence) + geometry_.z_offset);
}
uint64_t* ControlRegion::active(uint64_t sequence) const {
  return reinterpret_cast<uint64_t*>(Slot(sequence) + geometry_.active_offset);
}
int32_t* ControlRegion::row_keys(uint64_t sequence) const {
  return reinterpret_cast<int32_t*>(Slot(sequence) + geometry_.row_keys_offset);
}
float* ControlRegion::partial(uint64_t sequence) const {
  return reinterpret_cast<float*>(Slot(sequence) + geometry_.partial_offset);
}

}  // namespace isotherm::shm
