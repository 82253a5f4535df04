#include "cpu_worker/engine/arena.h"

#include <fcntl.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/shm/file_mapping.h"
#include "common/shm/huge_pages.h"
#include "common/threading/cores.h"

namespace isotherm::cpu {
namespace {

// Bytes that one thread packs at a time: small enough for even work and frequent progress, large
// enough for long reads of the file.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

// Bytes that one thread reserves at a time.
constexpr int64_t kReserveBytes = 32 * shm::kHugePage;

// Hands pieces of the arena to threads and keeps the first failure. The threads that will compute
// are those that touch first.
class Loader {
 public:
  Loader(const BundleSource& source, const shm::ArenaGeometry& geometry,
         const Arena::LoadOptions& options, int fd, const shm::Mapping& mapping)
      : source_(source),
        geometry_(geometry),
        options_(options),
        fd_(fd),
        mapping_(mapping),
        arena_(mapping.data()),
        neurons_per_piece_(std::clamp<int64_t>(kPieceBytes / geometry.bundle_bytes, 1,
                                               geometry.shape.num_neurons)),
        pieces_per_layer_(CeilDiv(geometry.shape.num_neurons, neurons_per_piece_)),
        num_pieces_(pieces_per_layer_ * geometry.shape.num_layers) {}

  absl::Status Run() {
    OnAllThreads([this] { Reserve(); });
    OnAllThreads([this] { Work(); });
    absl::MutexLock lock(&mu_);
    return status_;
  }

 private:
  template <typename Fn>
  void OnAllThreads(const Fn& fn) {
    std::vector<std::thread> threads;
    for (int i = 0; i < std::max(1, options_.num_threads); ++i) {
      threads.emplace_back([this, i, &fn] {
        ::pthread_setname_np(::pthread_self(), absl::StrCat("arena-load-", i).c_str());
        if (!options_.cpus.empty()) {
          BindThisThread({options_.cpus[static_cast<size_t>(i) % options_.cpus.size()]});
        }
        fn();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  void Reserve() {
    for (int64_t at; (at = reserved_.fetch_add(kReserveBytes)) < mapping_.size();) {
      const absl::Status status = shm::ReservePages(
          fd_, mapping_, at, std::min(kReserveBytes, mapping_.size() - at), "the arena");
      if (status.ok()) continue;
      absl::MutexLock lock(&mu_);
      if (status_.ok()) status_ = status;
      reserved_.store(mapping_.size());
      next_.store(num_pieces_);
    }
  }

  void Work() {
    for (int64_t piece = next_.fetch_add(1); piece < num_pieces_; piece = next_.fetch_add(1)) {
      const int64_t layer = piece / pieces_per_layer_;
      const int64_t first = piece % pieces_per_layer_ * neurons_per_piece_;
      const int64_t count = std::min(neurons_per_piece_, geometry_.shape.num_neurons - first);
      std::byte* const out = arena_ + geometry_.LayerOffset(layer) + first * geometry_.bundle_bytes;
      const absl::Status status = source_.pack(layer, first, count, out);
      absl::MutexLock lock(&mu_);
      ++done_;
      if (status_.ok()) status_ = status;
      if (status_.ok() && options_.progress &&
          !options_.progress(static_cast<double>(done_) / static_cast<double>(num_pieces_))) {
        status_ = absl::CancelledError("loading was stopped");
      }
      if (!status_.ok()) next_.store(num_pieces_);
    }
  }

  const BundleSource& source_;
  const shm::ArenaGeometry& geometry_;
  const Arena::LoadOptions& options_;
  const int fd_;
  const shm::Mapping& mapping_;
  std::byte* const arena_;
  const int64_t neurons_per_piece_;
  const int64_t pieces_per_layer_;
  const int64_t num_pieces_;
  std::atomic<int64_t> reserved_{0};
  std::atomic<int64_t> next_{0};
  absl::Mutex mu_;
  int64_t done_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

uint64_t DigestOf(const std::byte* data, int64_t bytes) {
  // Four lanes, so that multiplications overlap.
  std::array<uint64_t, 4> lanes{1, 2, 3, 4};
  for (int64_t at = 0; at + 32 <= bytes; at += 32) {
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      uint64_t word;
      std::memcpy(&word, data + at + 8 * static_cast<int64_t>(lane), sizeof(word));
      lanes[lane] = (lanes[lane] ^ word) * 0x9e3779b97f4a7c15u;
      lanes[lane] ^= lanes[lane] >> 32;
    }
  }
  uint64_t digest = static_cast<uint64_t>(bytes);
  for (const uint64_t lane : lanes) {
    digest = (digest ^ lane) * 0xbf58476d1ce4e5b9u;
    digest ^= digest >> 29;
  }
  return digest;
}

Arena::Arena(const shm::ArenaGeometry& geometry, UniqueFd fd, shm::Mapping mapping)
    : geometry_(geometry), fd_(std::move(fd)), mapping_(std::move(mapping)) {}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Load(const BundleSource& source,
                                                   const LoadOptions& options) {
  if (options.kind == ArenaKind::kMap && !source.file.has_value()) {
    return WithExitCode(
        absl::InvalidArgumentError("the model file is not in bundle order, so that it cannot be "
                                   "mapped; convert it: isotherm models convert --arena"),
        ExitCode::kUsage);
  }
  const bool map = source.file.has_value() &&
                   (options.kind == ArenaKind::kMap ||
                    (options.kind == ArenaKind::kAuto && shm::LiesInMemory(source.file->fd)));
  return map ? MapModelFile(source, options) : Copy(source, options);
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Copy(const BundleSource& source,
                                                   const LoadOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const shm::ArenaGeometry geometry,
                            shm::ArenaGeometry::Make(source.shape));
  ISOTHERM_ASSIGN_OR_RETURN(
      UniqueFd fd, shm::CreateUnreservedMemory("the arena", geometry.arena_bytes, options.limits));
  ISOTHERM_ASSIGN_OR_RETURN(shm::Mapping mapping, shm::MapShared(fd.get(), geometry.arena_bytes,
                                                                 shm::Access::kReadWrite));
  std::unique_ptr<Arena> arena(new Arena(geometry, std::move(fd), std::move(mapping)));
  ISOTHERM_RETURN_IF_ERROR(
      Loader(source, geometry, options, arena->fd_.get(), arena->mapping_).Run());
  for (int64_t layer = 0; layer < geometry.shape.num_layers; ++layer) {
    arena->digests_.push_back(DigestOf(arena->layer(layer), geometry.layer_bytes()));
  }
  shm::WriteArenaHeader(geometry, arena->mapping_.data());
  arena->huge_page_bytes_ = shm::HugePageBytes(arena->mapping_.data(), geometry.arena_bytes);
  ISOTHERM_RETURN_IF_ERROR(arena->mapping_.MakeReadOnly());
  return arena;
}

absl::StatusOr<UniqueFd> Arena::DuplicateFd() const {
  if (file_.has_value()) {
    // Whoever attaches would map what is no longer the model.
    ISOTHERM_RETURN_IF_ERROR(shm::CheckIdentity(fd_.get(), file_->identity, file_->path));
  }
  UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot duplicate the arena's descriptor: ", std::strerror(errno)));
  }
  return copy;
}

absl::Status Arena::CheckLayer(int64_t layer_idx) const {
  if (file_.has_value()) {
    const absl::Status same = shm::CheckIdentity(fd_.get(), file_->identity, file_->path);
    return same.ok() ? same : absl::DataLossError(same.message());
  }
  const uint64_t now = DigestOf(layer(layer_idx), geometry_.layer_bytes());
  if (now == digests_[static_cast<size_t>(layer_idx)]) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("layer ", layer_idx, " of the arena changed in memory; restart the cpu_worker"));
}

}  // namespace isotherm::cpu
