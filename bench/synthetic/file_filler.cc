#include "bench/synthetic/file_filler.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "common/base/checked_math.h"
#include "common/shm/file_mapping.h"
#include "common/shm/huge_pages.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace isotherm::bench {

FileFiller::FileFiller(const GgufWriter& writer) : writer_(writer) {
  if (!shm::LiesInMemory(writer.fd())) return;
  absl::StatusOr<shm::Mapping> mapping =
      shm::MapWhole(writer.fd(), writer.file_bytes(), shm::Access::kReadWrite);
  if (mapping.ok()) mapping_ = *std::move(mapping);
}

void FileFiller::TakeHugePages(int64_t offset, int64_t bytes) const {
  if (mapping_) shm::TakeHugePages(writer_.fd(), mapping_, offset, bytes);
}

absl::Status FileFiller::Put(size_t tensor_idx, int64_t offset,
                             std::span<const std::byte> bytes) const {
  if (mapping_) {
    constexpr int64_t kPage = 4096;
    const int64_t first = writer_.TensorOffset(tensor_idx) + offset;
    const int64_t from = first / kPage * kPage;
    const int64_t end = RoundUp<int64_t>(first + static_cast<int64_t>(bytes.size()), kPage);
    // When memory is short this fails, where the copy alone would be killed.
    if (::madvise(mapping_.data() + from, static_cast<size_t>(end - from), MADV_POPULATE_WRITE) ==
        0) {
      std::memcpy(mapping_.data() + first, bytes.data(), bytes.size());
      return absl::OkStatus();
    }
  }
  return writer_.WriteAt(tensor_idx, offset, bytes);
}

}  // namespace isotherm::bench
