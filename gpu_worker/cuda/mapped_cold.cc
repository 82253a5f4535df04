#include "gpu_worker/cuda/mapped_cold.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/shm/control_region.h"
#include "common/shm/slot_client.h"

namespace isotherm::gpu {

absl::StatusOr<std::unique_ptr<PinnedRange>> PinnedRange::Make(std::span<const std::byte> memory,
                                                               bool read_only) {
  std::unique_ptr<PinnedRange> range(new PinnedRange);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  auto* const data = const_cast<std::byte*>(memory.data());
  const size_t bytes = RoundUp(memory.size(), page);
  bool opened = false;
  if (read_only) opened = ::mprotect(data, bytes, PROT_READ | PROT_WRITE) == 0;
  const unsigned flags =
      cudaHostRegisterMapped | (read_only && !opened ? unsigned{cudaHostRegisterReadOnly} : 0u);
  const cudaError_t error = cudaHostRegister(data, bytes, flags);
  if (opened && ::mprotect(data, bytes, PROT_READ) != 0) {
    if (error == cudaSuccess) cudaHostUnregister(data);
    return absl::InternalError("shared memory could not be made read-only again");
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("pinning ", FormatBytes(static_cast<int64_t>(bytes)),
                     " of shared memory for the GPU failed: ", cudaGetErrorString(error),
                     "; raise the memlock limit, or put the model on tmpfs"));
  }
  range->host_ = {memory.data(), bytes};
  void* device = nullptr;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaHostGetDevicePointer(&device, data, 0));
  range->device_ = static_cast<unsigned char*>(device);
  return range;
}

PinnedRange::~PinnedRange() {
  if (!host_.empty()) cudaHostUnregister(const_cast<std::byte*>(host_.data()));
}

absl::StatusOr<std::shared_ptr<MappedCold>> MappedCold::Make(const ColdSide& cold,
                                                             const BundleLayout& layout) {
  std::shared_ptr<MappedCold> mapped(new MappedCold);
  if (cold.arena != nullptr && !cold.arena->mapping().empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(mapped->arena_range_,
                              PinnedRange::Make(cold.arena->mapping(), /*read_only=*/true));
    mapped->arena_ = cold.arena;
    std::vector<const unsigned char*> addresses;
    for (int64_t l = 0; l < layout.num_layers; ++l) {
      addresses.push_back(mapped->arena_range_->device_address(cold.arena->Layer(l).data));
    }
    const size_t bytes = addresses.size() * sizeof(addresses[0]);
    ISOTHERM_ASSIGN_OR_RETURN(mapped->layers_, DeviceBytes::Make(static_cast<int64_t>(bytes)));
    ISOTHERM_CUDA_RETURN_IF_ERROR(
        cudaMemcpy(mapped->layers_.as<void>(), addresses.data(), bytes, cudaMemcpyHostToDevice));
  }
  if (cold.link != nullptr && cold.link->slots() != nullptr) {
    const shm::ControlRegion& region = cold.link->slots()->region();
    ISOTHERM_ASSIGN_OR_RETURN(
        mapped->control_range_,
        PinnedRange::Make({region.data(), static_cast<size_t>(region.bytes())},
                          /*read_only=*/false));
    mapped->slots_ = cold.link->slots();
    const shm::ControlGeometry& g = region.geometry();
    mapped->max_rows_ = g.shape.max_rows;
    constexpr auto kAbort = static_cast<int64_t>(offsetof(shm::SideWords, abort));
    mapped->ring_ = {.base = mapped->control_range_->device_address(region.data()),
                     .slots_offset = g.slots_offset,
                     .slot_stride = g.slot_stride,
                     .z_offset = g.z_offset,
                     .active_offset = g.active_offset,
                     .row_keys_offset = g.row_keys_offset,
                     .result_offset = g.result_offset,
                     .partial_offset = g.partial_offset,
                     .own_abort_offset = g.gpu_words_offset + kAbort,
                     .peer_abort_offset = g.cpu_words_offset + kAbort,
                     .slot_mask = static_cast<uint64_t>(g.shape.num_slots - 1),
                     .nonce_high = region.nonce().high,
                     .nonce_low = region.nonce().low};
  }
  return mapped;
}

bool MappedCold::Holds(const std::byte* at) const {
  if (arena_range_ == nullptr) return false;
  const std::span<const std::byte> host = arena_range_->host();
  return at >= host.data() && at < host.data() + host.size();
}

}  // namespace isotherm::gpu
