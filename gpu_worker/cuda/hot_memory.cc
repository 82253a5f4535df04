#include "gpu_worker/cuda/hot_memory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_error.h"

namespace isotherm::gpu {
namespace {

// A chunk is what can be given back: small enough to follow a budget, large enough that mapping
// tens of GB takes well under a second. A small pool has smaller ones.
constexpr int64_t kMostChunkBytes = int64_t{64} << 20;
constexpr int64_t kChunksOfSmallPool = 32;

// The driver's functions, found at run time: nothing links libcuda, which is only on machines with
// a GPU.
struct Driver {
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_addresses = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  bool complete = true;

  Driver() {
    Find("cuMemAddressReserve", &reserve);
    Find("cuMemAddressFree", &free_addresses);
    Find("cuMemCreate", &create);
    Find("cuMemRelease", &release);
    Find("cuMemMap", &map);
    Find("cuMemUnmap", &unmap);
    Find("cuMemSetAccess", &set_access);
    Find("cuMemGetAllocationGranularity", &granularity);
  }

 private:
  template <typename Function>
  void Find(const char* name, Function* out) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      complete = false;
      return;
    }
    *out = reinterpret_cast<Function>(address);
  }
};

const Driver& GetDriver() {
  static const Driver driver;
  return driver;
}

CUmemAllocationProp Properties(int device) {
  CUmemAllocationProp out = {};
  out.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  out.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  out.location.id = device;
  return out;
}

absl::Status DriverStatus(CUresult result, absl::string_view what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return CudaStatus(cudaErrorMemoryAllocation, what);
  return absl::InternalError(absl::StrCat(what, ": driver error ", static_cast<int>(result)));
}

}  // namespace

// NOLINTBEGIN(clang-analyzer-core.CallAndMessage): a driver that lacks a function has no HotMemory.

absl::StatusOr<std::unique_ptr<HotMemory>> HotMemory::Reserve(int device, int64_t most_bytes) {
  const Driver& driver = GetDriver();
  if (!driver.complete)
    return absl::FailedPreconditionError("the GPU's driver lacks virtual memory; update it");
  std::unique_ptr<HotMemory> memory(new HotMemory);
  memory->device_ = device;
  const CUmemAllocationProp properties = Properties(device);
  size_t granularity = 0;
  ISOTHERM_RETURN_IF_ERROR(
      DriverStatus(driver.granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                   "asking for the granularity of memory"));
  memory->granularity_ = static_cast<int64_t>(granularity);
  memory->reserved_ = RoundUp(std::max<int64_t>(most_bytes, 1), memory->granularity_);
  memory->chunk_bytes_ = std::min(
      kMostChunkBytes, RoundUp(memory->reserved_ / kChunksOfSmallPool + 1, memory->granularity_));
  ISOTHERM_RETURN_IF_ERROR(
      DriverStatus(driver.reserve(&memory->base_, static_cast<size_t>(memory->reserved_), 0, 0, 0),
                   "reserving addresses for the hot pool"));
  return memory;
}

HotMemory::~HotMemory() {
  const Driver& driver = GetDriver();
  while (!chunks_.empty()) {
    bytes_ -= chunks_.back().bytes;
    driver.unmap(base_ + static_cast<CUdeviceptr>(bytes_),
                 static_cast<size_t>(chunks_.back().bytes));
    driver.release(chunks_.back().handle);
    chunks_.pop_back();
  }
  if (base_ != 0) driver.free_addresses(base_, static_cast<size_t>(reserved_));
}

int64_t HotMemory::SizeAfter(int64_t bytes) const {
  const int64_t wanted = RoundUp(std::clamp<int64_t>(bytes, 0, reserved_), granularity_);
  int64_t size = bytes_;
  for (auto chunk = chunks_.rbegin(); chunk != chunks_.rend() && size - chunk->bytes >= wanted;
       ++chunk) {
    size -= chunk->bytes;
  }
  return std::max(size, wanted);
}

absl::Status HotMemory::Resize(int64_t bytes) {
  const int64_t wanted = SizeAfter(bytes);
  return wanted < bytes_ ? Shrink(wanted) : Grow(wanted);
}

absl::Status HotMemory::Shrink(int64_t wanted) {
  const Driver& driver = GetDriver();
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());
  while (bytes_ > wanted) {
    const Chunk chunk = chunks_.back();
    ISOTHERM_RETURN_IF_ERROR(
        DriverStatus(driver.unmap(base_ + static_cast<CUdeviceptr>(bytes_ - chunk.bytes),
                                  static_cast<size_t>(chunk.bytes)),
                     "unmapping the hot pool"));
    chunks_.pop_back();
    bytes_ -= chunk.bytes;
    ISOTHERM_RETURN_IF_ERROR(DriverStatus(driver.release(chunk.handle), "freeing the hot pool"));
  }
  return absl::OkStatus();
}

absl::Status HotMemory::Grow(int64_t wanted) {
  const int64_t before = bytes_;
  if (before < wanted) ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
  while (bytes_ < wanted) {
    absl::Status status = AddChunk(std::min(chunk_bytes_, wanted - bytes_));
    if (absl::IsResourceExhausted(status)) {
      return DeviceShort("the hot pool", wanted - before,
                         "lower the budget of hot neurons or --vram-budget, or end what else holds "
                         "memory of this GPU",
                         bytes_ - before);
    }
    ISOTHERM_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::Status HotMemory::AddChunk(int64_t bytes) {
  const Driver& driver = GetDriver();
  Chunk chunk{.handle = 0, .bytes = bytes};
  const CUmemAllocationProp properties = Properties(device_);
  const auto size = static_cast<size_t>(bytes);
  const CUresult created = AllocationFails() ? CUDA_ERROR_OUT_OF_MEMORY
                                             : driver.create(&chunk.handle, size, &properties, 0);
  ISOTHERM_RETURN_IF_ERROR(DriverStatus(created, "taking memory for the hot pool"));
  const CUdeviceptr at = base_ + static_cast<CUdeviceptr>(bytes_);
  absl::Status status =
      DriverStatus(driver.map(at, size, 0, chunk.handle, 0), "mapping the hot pool");
  if (status.ok()) {
    const CUmemAccessDesc access = {.location = properties.location,
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    status = DriverStatus(driver.set_access(at, size, &access, 1), "opening the hot pool");
    if (!status.ok()) driver.unmap(at, size);
  }
  if (!status.ok()) {
    driver.release(chunk.handle);
    return status;
  }
  chunks_.push_back(chunk);
  bytes_ += bytes;
  return absl::OkStatus();
}

// NOLINTEND(clang-analyzer-core.CallAndMessage)

}  // namespace isotherm::gpu
