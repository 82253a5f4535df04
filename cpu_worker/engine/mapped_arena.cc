// The arena that is a bundle-ordered model file.

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/shm/file_mapping.h"
#include "common/shm/huge_pages.h"
#include "cpu_worker/engine/arena.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace isotherm::cpu {
namespace {

constexpr int64_t kPieceBytes = int64_t{64} << 20;
constexpr int64_t kPage = 4096;

// Reads what is not yet in memory and fills this process's page tables, so that no token waits for
// a page. Threads take the file piece by piece.
class PageToucher {
 public:
  PageToucher(const shm::Mapping& mapping, const Arena::LoadOptions& options)
      : mapping_(mapping), options_(options), num_pieces_(CeilDiv(mapping.size(), kPieceBytes)) {}

  absl::Status Run() {
    std::vector<std::thread> threads;
    for (int i = 1; i < options_.num_threads; ++i) {
      threads.emplace_back([this, i] {
        ::pthread_setname_np(::pthread_self(), absl::StrCat("arena-map-", i).c_str());
        Work();
      });
    }
    Work();
    for (std::thread& thread : threads) thread.join();
    absl::MutexLock lock(&mu_);
    return status_;
  }

 private:
  void Work() {
    for (int64_t piece = next_.fetch_add(1); piece < num_pieces_; piece = next_.fetch_add(1)) {
      Touch(piece * kPieceBytes, std::min(kPieceBytes, mapping_.size() - piece * kPieceBytes));
      absl::MutexLock lock(&mu_);
      ++done_;
      if (status_.ok() && options_.progress &&
          !options_.progress(static_cast<double>(done_) / static_cast<double>(num_pieces_))) {
        status_ = absl::CancelledError("loading was stopped");
        next_.store(num_pieces_);
      }
    }
  }

  void Touch(int64_t offset, int64_t bytes) const {
    std::byte* const at = mapping_.data() + offset;
    if (::madvise(at, static_cast<size_t>(bytes), MADV_POPULATE_READ) == 0) return;
    for (int64_t i = 0; i < bytes; i += kPage) {
      (void)*static_cast<volatile const std::byte*>(at + i);
    }
  }

  const shm::Mapping& mapping_;
  const Arena::LoadOptions& options_;
  const int64_t num_pieces_;
  std::atomic<int64_t> next_{0};
  absl::Mutex mu_;
  int64_t done_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::MapModelFile(const BundleSource& source,
                                                           const LoadOptions& options) {
  const BundleFileSource& file = *source.file;
  ISOTHERM_ASSIGN_OR_RETURN(
      const shm::ArenaGeometry geometry,
      shm::ArenaGeometry::MakeInFile(source.shape, file.layer_offsets, file.identity.bytes));
  // What lies in memory has its pages already.
  if (!shm::LiesInMemory(file.fd)) {
    ISOTHERM_RETURN_IF_ERROR(
        shm::CheckMemoryFor("the mapped model file", geometry.arena_bytes, options.limits));
  }
  UniqueFd fd(::fcntl(file.fd, F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot duplicate the model file's descriptor: ", std::strerror(errno)));
  }
  absl::StatusOr<shm::Mapping> mapping = shm::MapFile(fd.get(), file.identity, file.path);
  if (absl::IsFailedPrecondition(mapping.status())) {
    return WithExitCode(absl::DataLossError(mapping.status().message()), ExitCode::kBadData);
  }
  ISOTHERM_RETURN_IF_ERROR(mapping.status());
  std::unique_ptr<Arena> arena(
      new Arena(geometry, std::move(fd), *std::move(mapping), geometry.shape.num_neurons));
  ISOTHERM_RETURN_IF_ERROR(PageToucher(arena->mapping_, options).Run());
  arena->huge_page_bytes_ = shm::HugePageBytes(arena->mapping_.data(), geometry.arena_bytes);
  arena->file_ = {.path = file.path, .identity = file.identity};
  return arena;
}

}  // namespace isotherm::cpu
