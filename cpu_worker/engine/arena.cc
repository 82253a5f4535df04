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

// Small enough that checking one between two layers holds no step up (some 50 us), large enough
// that its digest weighs nothing.
constexpr int64_t kGroupBytes = int64_t{256} << 10;
// Groups that one thread packs at a time: small enough for even work and frequent progress, large
// enough for long reads of the file.
constexpr int64_t kGroupsPerPiece = 16;

// Bytes that one thread reserves at a time.
constexpr int64_t kReserveBytes = 32 * shm::kHugePage;

}  // namespace

// Hands pieces of the arena to threads and keeps the first failure. The threads that will compute
// are those that touch first.
class Arena::Loader {
 public:
  Loader(const BundleSource& source, const LoadOptions& options, Arena& arena)
      : source_(source), options_(options), arena_(arena) {}

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
    const shm::Mapping& mapping = arena_.mapping_;
    for (int64_t at; (at = reserved_.fetch_add(kReserveBytes)) < mapping.size();) {
      const absl::Status status = shm::ReservePages(
          arena_.fd_.get(), mapping, at, std::min(kReserveBytes, mapping.size() - at), "the arena");
      if (status.ok()) continue;
      absl::MutexLock lock(&mu_);
      if (status_.ok()) status_ = status;
      reserved_.store(mapping.size());
      next_.store(arena_.num_groups());
    }
  }

  void Work() {
    const int64_t num_groups = arena_.num_groups();
    const auto claim = [this] { return next_.fetch_add(kGroupsPerPiece); };
    for (int64_t first = claim(); first < num_groups; first = claim()) {
      const int64_t last = std::min(first + kGroupsPerPiece, num_groups);
      const absl::Status status = Fill(first, last);
      absl::MutexLock lock(&mu_);
      done_ += last - first;
      if (status_.ok()) status_ = status;
      if (status_.ok() && options_.progress &&
          !options_.progress(static_cast<double>(done_) / static_cast<double>(num_groups))) {
        status_ = absl::CancelledError("loading was stopped");
      }
      if (!status_.ok()) next_.store(num_groups);
    }
  }

  // Groups of one layer that follow each other are packed at once.
  absl::Status Fill(int64_t first, int64_t last) {
    for (int64_t group = first; group < last;) {
      const Extent from = arena_.ExtentOf(group);
      int64_t count = 0;
      int64_t end = group;
      for (; end < last && arena_.ExtentOf(end).layer == from.layer; ++end)
        count += arena_.ExtentOf(end).num_neurons;
      ISOTHERM_RETURN_IF_ERROR(
          source_.pack(from.layer, from.first_neuron, count, arena_.mapping_.data() + from.offset));
      for (; group < end; ++group)
        arena_.digests_[static_cast<size_t>(group)] = arena_.DigestNow(group);
    }
    return absl::OkStatus();
  }

  const BundleSource& source_;
  const LoadOptions& options_;
  Arena& arena_;
  std::atomic<int64_t> reserved_{0};
  std::atomic<int64_t> next_{0};
  absl::Mutex mu_;
  int64_t done_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

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

Arena::Arena(const shm::ArenaGeometry& geometry, UniqueFd fd, shm::Mapping mapping,
             int64_t neurons_per_group)
    : geometry_(geometry),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      neurons_per_group_(neurons_per_group),
      groups_per_layer_(CeilDiv(geometry.shape.num_neurons, neurons_per_group_)) {}

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
  const int64_t neurons_per_group =
      std::clamp<int64_t>(kGroupBytes / geometry.bundle_bytes, 1, geometry.shape.num_neurons);
  std::unique_ptr<Arena> arena(
      new Arena(geometry, std::move(fd), std::move(mapping), neurons_per_group));
  arena->digests_.resize(static_cast<size_t>(arena->num_groups()));
  ISOTHERM_RETURN_IF_ERROR(Loader(source, options, *arena).Run());
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

Arena::Extent Arena::ExtentOf(int64_t group) const {
  const int64_t layer = group / groups_per_layer_;
  const int64_t first = group % groups_per_layer_ * neurons_per_group_;
  const int64_t count = std::min(neurons_per_group_, geometry_.shape.num_neurons - first);
  return {.layer = layer,
          .first_neuron = first,
          .num_neurons = count,
          .offset = geometry_.LayerOffset(layer) + first * geometry_.bundle_bytes,
          .bytes = count * geometry_.bundle_bytes};
}

uint64_t Arena::DigestNow(int64_t group) const {
  const Extent extent = ExtentOf(group);
  return DigestOf(mapping_.data() + extent.offset, extent.bytes);
}

absl::Status Arena::CheckGroup(int64_t group) const {
  if (file_.has_value()) {
    const absl::Status same = shm::CheckIdentity(fd_.get(), file_->identity, file_->path);
    return same.ok() ? same : absl::DataLossError(same.message());
  }
  if (DigestNow(group) == digests_[static_cast<size_t>(group)]) return absl::OkStatus();
  const Extent extent = ExtentOf(group);
  return absl::DataLossError(absl::StrCat(
      "neurons ", extent.first_neuron, " to ", extent.first_neuron + extent.num_neurons - 1,
      " of layer ", extent.layer, " changed in memory; check the machine's memory"));
}

absl::StatusOr<int64_t> Arena::MendGroup(int64_t group, const BundleSource& source) {
  if (file_.has_value()) {
    return absl::DataLossError(absl::StrCat(
        file_->path, " is mapped and is no longer what was loaded; start anew with it"));
  }
  const Extent extent = ExtentOf(group);
  std::vector<std::byte> want(static_cast<size_t>(extent.bytes));
  ISOTHERM_RETURN_IF_ERROR(
      source.pack(extent.layer, extent.first_neuron, extent.num_neurons, want.data()));
  if (DigestOf(want.data(), extent.bytes) != digests_[static_cast<size_t>(group)]) {
    return absl::DataLossError(absl::StrCat(
        "layer ", extent.layer, " of the model file is not what was loaded; start anew with it"));
  }
  const std::byte* const have = mapping_.data() + extent.offset;
  int64_t mended = 0;
  for (int64_t at = 0; at < extent.bytes; ++at) {
    if (have[at] == want[static_cast<size_t>(at)]) continue;
    // Through the descriptor: our mapping is read-only.
    if (::pwrite(fd_.get(), &want[static_cast<size_t>(at)], 1, extent.offset + at) != 1) {
      return absl::InternalError(absl::StrCat("cannot write to the arena: ", std::strerror(errno)));
    }
    ++mended;
  }
  return mended;
}

}  // namespace isotherm::cpu
