#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "common/shm/shared_memory.h"
#include "models/gguf/gguf_writer.h"

namespace isotherm::bench {

// Puts bytes into a reserved GGUF file from many threads. On tmpfs it maps the file, for there one
// write() at a time holds the file's lock, at 0.6 s of a core for each GB (1.6 GB/s in all), where
// threads that fill their own pages take 1.1 s but do not wait for each other. Elsewhere, and where
// the kernel cannot populate pages (before Linux 5.14), it writes.
class FileFiller {
 public:
  // After writer.Reserve(). The writer outlives the filler, which must be gone before Finish().
  explicit FileFiller(const GgufWriter& writer);

  // Bytes [offset, offset + bytes) of the file, offset a multiple of 2 MiB, are to lie in 2 MiB
  // pages: where the file is mapped and as far as the host gives them. Any thread.
  void TakeHugePages(int64_t offset, int64_t bytes) const;

  // As GgufWriter::WriteAt(), with its errors.
  absl::Status Put(size_t tensor_idx, int64_t offset, std::span<const std::byte> bytes) const;

 private:
  const GgufWriter& writer_;
  shm::Mapping mapping_;  // empty: write
};

}  // namespace isotherm::bench
