#include "common/shm/slot_server.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {
namespace {

// A post's time left is clamped to this: it is only ever a bound on waiting.
constexpr int64_t kLongestUs = 600'000'000;

WireStatus ToWire(ColdLayerStatus status) {
  switch (status) {
    case ColdLayerStatus::kDone:
      return WireStatus::kDone;
    case ColdLayerStatus::kStaleEpoch:
      return WireStatus::kStaleEpoch;
    case ColdLayerStatus::kPoison:
      return WireStatus::kPoison;
    case ColdLayerStatus::kCancelled:
      return WireStatus::kCancelled;
  }
  return WireStatus::kPoison;
}

}  // namespace

SlotServer::SlotServer(ControlRegion& region, const WaitOptions& options, bool device_rings)
    : region_(region),
      bell_(region, options),
      next_sequence_(region.first_sequence()),
      spin_(device_rings ? std::max(options.spin, options.device_spin) : options.spin) {
  const int64_t rows = region.geometry().shape.max_rows;
  active_.resize(static_cast<size_t>(rows * region.geometry().words_per_row));
  row_keys_.resize(static_cast<size_t>(RoundUp<int64_t>(rows, 2)));
}

absl::StatusOr<std::unique_ptr<SlotServer>> SlotServer::Create(ControlRegion& region,
                                                               const WaitOptions& options,
                                                               bool device_rings) {
  if (region.side() != Side::kCpu) {
    return absl::InvalidArgumentError("a SlotServer needs the cpu side's mapping of a region");
  }
  return std::unique_ptr<SlotServer>(new SlotServer(region, options, device_rings));
}

absl::Status SlotServer::CheckRequest(const RequestFields& fields) const {
  const ControlShape& shape = geometry().shape;
  if (fields.nonce_high != region_.nonce().high || fields.nonce_low != region_.nonce().low ||
      fields.sequence != next_sequence_) {
    return absl::InternalError("a post of another attachment or turn");
  }
  if (fields.time_left_us < 0 || fields.layer < kEndOfStep || fields.layer >= shape.num_layers) {
    return absl::InternalError(
        absl::StrCat("a post of layer ", fields.layer, " with ", fields.time_left_us, " us left"));
  }
  if (fields.layer == kEndOfStep) return absl::OkStatus();
  if (fields.num_rows < 1 || fields.num_rows > shape.max_rows || fields.cut < 0 ||
      fields.cut > shape.num_neurons) {
    return absl::InternalError(absl::StrCat("a post of ", fields.num_rows, " rows and cut ",
                                            fields.cut, ", want 1 to ", shape.max_rows,
                                            " rows and a cut to ", shape.num_neurons));
  }
  return absl::OkStatus();
}

absl::StatusOr<ColdLayerWork> SlotServer::Next(TimePoint deadline) {
  if (taken_) return absl::FailedPreconditionError("Next before Finish");
  SlotRequest& request = region_.request(next_sequence_);
  const absl::Status status = bell_.Await(
      [&] { return request.sequence.load(std::memory_order_acquire) == next_sequence_; }, deadline,
      next_spin());
  idle_ = absl::IsDeadlineExceeded(status);
  ISOTHERM_RETURN_IF_ERROR(status);
  const RequestFields fields = Snapshot(request.fields);
  ISOTHERM_RETURN_IF_ERROR(CheckRequest(fields));
  region_.result(next_sequence_).taken.store(next_sequence_, std::memory_order_release);
  taken_ = true;

  ColdLayerWork work;
  work.sequence = next_sequence_;
  work.header = {.step_id = fields.step_id,
                 .epoch = fields.epoch,
                 .layer = fields.layer,
                 .attempt = fields.attempt,
                 .num_rows = fields.layer == kEndOfStep ? 0 : fields.num_rows,
                 .cut = fields.layer == kEndOfStep ? 0 : fields.cut,
                 .deadline = std::chrono::steady_clock::now() +
                             std::chrono::microseconds(std::min(fields.time_left_us, kLongestUs))};
  if (fields.layer == kEndOfStep) return work;

  const uint64_t cancelled = region_.peer_words().cancelled_through.load(std::memory_order_acquire);
  work.cancelled = static_cast<int64_t>(cancelled - next_sequence_) >= 0;
  const int64_t words = geometry().words_per_row;
  SnapshotWords(active_.data(), region_.active(next_sequence_), fields.num_rows * words);
  if (const int32_t tail = geometry().shape.num_neurons % 64; tail != 0) {
    const uint64_t mask = (uint64_t{1} << tail) - 1;
    for (int64_t row = 0; row < fields.num_rows; ++row) {
      active_[static_cast<size_t>(row * words + words - 1)] &= mask;
    }
  }
  // The slot's array is padded to 64 bytes, so the odd last one may be copied as a pair.
  SnapshotWords(row_keys_.data(), region_.row_keys(next_sequence_),
                CeilDiv<int64_t>(fields.num_rows, 2));
  work.z = region_.z(next_sequence_);
  work.active = active_.data();
  work.row_keys = row_keys_.data();
  work.partial = region_.partial(next_sequence_);
  return work;
}

absl::Status SlotServer::Finish(const ColdLayerWork& work, const ColdLayerOutcome& outcome) {
  if (!taken_ || work.sequence != next_sequence_) {
    return absl::FailedPreconditionError("Finish of a post that is not the one taken");
  }
  SlotResult& result = region_.result(next_sequence_);
  result.fields = {
      .nonce_high = region_.nonce().high,
      .nonce_low = region_.nonce().low,
      .sequence = next_sequence_,
      .step_id = work.header.step_id,
      .epoch = work.header.epoch,
      .layer = work.header.layer,
      .attempt = work.header.attempt,
      .num_rows = work.header.num_rows,
      .status = static_cast<int32_t>(ToWire(outcome.status)),
      .work_hash = outcome.work_hash,
      .neurons = outcome.neurons,
      .compute_us = outcome.compute_us,
      .reserved = 0,
  };
  result.sequence.store(next_sequence_, std::memory_order_release);
  ++next_sequence_;
  taken_ = false;
  bell_.Ring();
  return absl::OkStatus();
}

}  // namespace isotherm::shm
