#include "common/shm/slot_client.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {
namespace {

// True when none of `values` is infinite or NaN.
bool AllFinite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

}  // namespace

SlotClient::SlotClient(ControlRegion& region, const WaitOptions& options)
    : region_(region), bell_(region, options), next_sequence_(region.first_sequence()) {
  const ControlShape& shape = region.geometry().shape;
  partial_.resize(static_cast<size_t>(int64_t{shape.max_rows} * shape.model_dim));
}

absl::StatusOr<std::unique_ptr<SlotClient>> SlotClient::Create(ControlRegion& region,
                                                               const WaitOptions& options) {
  if (region.side() != Side::kGpu) {
    return absl::InvalidArgumentError("a SlotClient needs the gpu side's mapping of a region");
  }
  return std::unique_ptr<SlotClient>(new SlotClient(region, options));
}

absl::Status SlotClient::AwaitFree(TimePoint deadline) {
  const uint64_t before = next_sequence_ - static_cast<uint64_t>(geometry().shape.num_slots);
  SlotResult& result = region_.result(next_sequence_);
  return bell_.Await([&] { return result.sequence.load(std::memory_order_acquire) == before; },
                     deadline);
}

absl::StatusOr<PostBuffers> SlotClient::BeginPost(int32_t num_rows, TimePoint deadline) {
  if (num_rows < 1 || num_rows > geometry().shape.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("a post of ", num_rows, " rows, want 1 to ", geometry().shape.max_rows));
  }
  ISOTHERM_RETURN_IF_ERROR(AwaitFree(deadline));
  begun_rows_ = num_rows;
  return PostBuffers{.z = region_.z(next_sequence_),
                     .active = region_.active(next_sequence_),
                     .row_keys = region_.row_keys(next_sequence_)};
}

void SlotClient::Publish(const ColdLayerHeader& header) {
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
      header.deadline - std::chrono::steady_clock::now());
  SlotRequest& request = region_.request(next_sequence_);
  request.fields = {
      .nonce_high = region_.nonce().high,
      .nonce_low = region_.nonce().low,
      .sequence = next_sequence_,
      .step_id = header.step_id,
      .epoch = header.epoch,
      .layer = header.layer,
      .attempt = header.attempt,
      .num_rows = header.num_rows,
      .cut = header.cut,
      .time_left_us = std::max<int64_t>(left.count(), 0),
  };
  request.sequence.store(next_sequence_, std::memory_order_release);
  bell_.Ring();
}

absl::Status SlotClient::Commit(const ColdLayerHeader& header) {
  if (begun_rows_ == 0) return absl::FailedPreconditionError("Commit without BeginPost");
  const ControlShape& shape = geometry().shape;
  if (header.num_rows != begun_rows_ || header.layer < 0 || header.layer >= shape.num_layers ||
      header.cut < 0 || header.cut > shape.num_neurons) {
    return absl::InvalidArgumentError(
        absl::StrCat("post of layer ", header.layer, ", ", header.num_rows, " rows, cut ",
                     header.cut, "; want layers to ", shape.num_layers - 1, ", ", begun_rows_,
                     " rows, cut to ", shape.num_neurons));
  }
  Publish(header);
  begun_rows_ = 0;
  awaiting_ = true;
  awaited_ = header;
  awaited_sequence_ = next_sequence_++;
  return absl::OkStatus();
}

absl::Status SlotClient::PostEndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                                       TimePoint deadline) {
  ISOTHERM_RETURN_IF_ERROR(AwaitFree(deadline));
  Publish({.step_id = step_id,
           .epoch = epoch,
           .layer = kEndOfStep,
           .attempt = attempt,
           .deadline = deadline});
  ++next_sequence_;
  return absl::OkStatus();
}

void SlotClient::RingSleeper() {
  if (region_.peer_words().sleeps.load(std::memory_order_seq_cst) != 0) bell_.Ring();
}

absl::Status SlotClient::AwaitIdle(TimePoint deadline) {
  const uint64_t last = next_sequence_ - 1;
  SlotResult& result = region_.result(last);
  return bell_.Await([&] { return result.sequence.load(std::memory_order_acquire) == last; },
                     deadline);
}

void SlotClient::CancelPosted() {
  region_.own_words().cancelled_through.store(next_sequence_ - 1, std::memory_order_release);
}

void SlotClient::Drop(uint64_t observed_sequence) {
  const uint32_t bell = region_.peer_words().bell.load(std::memory_order_relaxed);
  if (observed_sequence == last_dropped_ && bell == last_dropped_bell_) return;
  last_dropped_ = observed_sequence;
  last_dropped_bell_ = bell;
  dropped_.fetch_add(1, std::memory_order_relaxed);
}

absl::StatusOr<ColdLayerResult> SlotClient::Accept(const ResultFields& fields, bool was_ready) {
  switch (static_cast<WireStatus>(fields.status)) {
    case WireStatus::kDone:
      break;
    case WireStatus::kStaleEpoch:
      return absl::AbortedError(absl::StrCat("the cpu side does not know epoch ", awaited_.epoch));
    case WireStatus::kCancelled:
      return absl::AbortedError("the post was cancelled");
    case WireStatus::kPoison:
      return absl::InternalError("the cpu side failed to compute its neurons");
    default:
      return absl::InternalError(absl::StrCat("a result with status ", fields.status));
  }
  const int64_t pairs = int64_t{awaited_.num_rows} * geometry().shape.num_neurons;
  if (fields.num_rows != awaited_.num_rows || fields.neurons < 0 || fields.neurons > pairs) {
    return absl::InternalError(absl::StrCat("a result of ", fields.num_rows, " rows and ",
                                            fields.neurons, " neurons, want ", awaited_.num_rows,
                                            " rows and at most ", pairs, " neurons"));
  }
  const int64_t count = int64_t{awaited_.num_rows} * geometry().shape.model_dim;
  std::memcpy(partial_.data(), region_.partial(awaited_sequence_),
              static_cast<size_t>(count) * sizeof(float));
  // The copy is what gets checked: without this the compiler might check the shared values.
  asm volatile("" ::: "memory");
  if (!AllFinite(partial_.data(), count)) {
    return absl::InternalError("a result with values that are not finite");
  }
  return ColdLayerResult{.partial = partial_.data(),
                         .work_hash = fields.work_hash,
                         .neurons = fields.neurons,
                         .compute_us = fields.compute_us,
                         .was_ready = was_ready};
}

absl::StatusOr<ColdLayerResult> SlotClient::Wait(TimePoint deadline) {
  if (!awaiting_) return absl::FailedPreconditionError("Wait without Commit");
  awaiting_ = false;
  SlotResult& result = region_.result(awaited_sequence_);
  const uint64_t before = awaited_sequence_ - static_cast<uint64_t>(geometry().shape.num_slots);
  const bool was_ready = result.sequence.load(std::memory_order_acquire) == awaited_sequence_;
  ResultFields fields;
  const absl::Status status = bell_.Await(
      [&] {
        const uint64_t sequence = result.sequence.load(std::memory_order_acquire);
        if (sequence == before) return false;
        if (sequence != awaited_sequence_) {
          Drop(sequence);
          return false;
        }
        fields = Snapshot(result.fields);
        const bool same = fields.nonce_high == region_.nonce().high &&
                          fields.nonce_low == region_.nonce().low &&
                          fields.sequence == awaited_sequence_ &&
                          fields.step_id == awaited_.step_id && fields.epoch == awaited_.epoch &&
                          fields.layer == awaited_.layer && fields.attempt == awaited_.attempt;
        if (!same) Drop(sequence);
        return same;
      },
      deadline);
  if (!status.ok()) {
    if (absl::IsDeadlineExceeded(status)) CancelPosted();
    return status;
  }
  return Accept(fields, was_ready);
}

}  // namespace isotherm::shm
