#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"
#include "common/shm/control_layout.h"
#include "common/shm/shared_memory.h"

namespace isotherm::shm {

enum class Side { kGpu, kCpu };

// One side's mapping of the control region of an attachment. Shared by that side's SlotClient or
// SlotServer and PeerWatch, which it must outlive. Everything but the memory it maps is constant.
class ControlRegion {
 public:
  struct CreateOptions {
    ControlShape shape;
    uint64_t layout_hash = 0;
    Nonce nonce;
    uint64_t first_sequence = 1;
  };
  // The cpu side: makes the memory and writes the header. The descriptor is for the peer.
  static absl::StatusOr<std::unique_ptr<ControlRegion>> Create(const CreateOptions& options,
                                                               const MemoryLimits& limits);

  struct Expected {
    int64_t region_bytes = 0;  // from the handshake, like the nonce
    Nonce nonce;
    uint64_t layout_hash = 0;  // our own model's
    int32_t model_dim = 0;
    int32_t num_neurons = 0;
    int32_t num_layers = 0;
    ProcessIdentity creator;  // start_ticks 0: not known, not checked
  };
  // The gpu side: maps the peer's memory. FailedPrecondition, with nothing left mapped, when seals,
  // size or any field of the header is not as expected.
  static absl::StatusOr<std::unique_ptr<ControlRegion>> Attach(UniqueFd fd,
                                                               const Expected& expected);

  // The gpu side over this very mapping, for both sides as threads of one process (a race detector
  // sees nothing across two mappings). This region outlives it.
  std::unique_ptr<ControlRegion> GpuViewOfSameMapping() const;

  ControlRegion(const ControlRegion&) = delete;
  ControlRegion& operator=(const ControlRegion&) = delete;

  Side side() const { return side_; }
  const Nonce& nonce() const { return nonce_; }
  uint64_t first_sequence() const { return first_sequence_; }
  const ControlGeometry& geometry() const { return geometry_; }
  int fd() const { return fd_.get(); }
  int64_t bytes() const { return geometry_.region_bytes; }
  std::byte* data() const { return data_; }

  SideWords& own_words() const { return Words(side_); }
  SideWords& peer_words() const { return Words(side_ == Side::kGpu ? Side::kCpu : Side::kGpu); }

  // Of the slot whose turn `sequence` is.
  SlotRequest& request(uint64_t sequence) const;
  SlotResult& result(uint64_t sequence) const;
  uint16_t* z(uint64_t sequence) const;        // [max_rows, model_dim]
  uint64_t* active(uint64_t sequence) const;   // [max_rows, words_per_row]
  int32_t* row_keys(uint64_t sequence) const;  // [max_rows]
  float* partial(uint64_t sequence) const;     // [max_rows, model_dim]

 private:
  ControlRegion(Side side, UniqueFd fd, Mapping mapping, std::byte* data,
                const ControlGeometry& geometry, const Nonce& nonce, uint64_t first_sequence);
  SideWords& Words(Side side) const;
  std::byte* Slot(uint64_t sequence) const;

  const Side side_;
  const UniqueFd fd_;
  const Mapping mapping_;  // empty in a view
  std::byte* const data_;
  const ControlGeometry geometry_;
  const Nonce nonce_;
  const uint64_t first_sequence_;
};

}  // namespace isotherm::shm
