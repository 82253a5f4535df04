#include "cpu_worker/service/layer_convert.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm::cpu {
namespace {

constexpr int64_t kLongestUs = 600'000'000;

absl::Status Expect(absl::string_view field, int64_t got, int64_t low, int64_t high) {
  if (got >= low && got <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("compute_layer: ", field, " is ", got, ", want ",
                                                 low,
                                                 low == high ? "" : absl::StrCat(" to ", high)));
}

template <typename T>
void CopyBytes(const std::string& bytes, std::vector<T>* out) {
  out->resize(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(out->data(), bytes.data(), out->size() * sizeof(T));
}

}  // namespace

ColdLayerTask LayerMessage::Task() {
  return {.header = header,
          .nonce = nonce,
          .z = z.data(),
          .active = active.data(),
          .row_keys = row_keys.data(),
          .partial = partial.data()};
}

absl::Status FromProto(const v1::ComputeLayerRequest& request, const shm::ArenaShape& shape,
                       int32_t max_rows, LayerMessage* message) {
  ISOTHERM_RETURN_IF_ERROR(Expect("layer", request.layer(), shm::kEndOfStep, shape.num_layers - 1));
  ISOTHERM_RETURN_IF_ERROR(
      Expect("deadline_us", request.deadline_us(), 0, std::numeric_limits<int64_t>::max()));
  message->header = {
      .step_id = request.step_id(),
      .epoch = request.epoch(),
      .layer = request.layer(),
      .attempt = request.attempt(),
      .deadline = std::chrono::steady_clock::now() +
                  std::chrono::microseconds(std::min(request.deadline_us(), kLongestUs))};
  message->nonce = request.nonce();
  if (request.layer() == shm::kEndOfStep) return absl::OkStatus();

  ISOTHERM_RETURN_IF_ERROR(Expect("num_rows", request.num_rows(), 1, max_rows));
  ISOTHERM_RETURN_IF_ERROR(Expect("cut", request.cut(), 0, shape.num_neurons));
  const int64_t rows = request.num_rows();
  const int64_t words = CeilDiv<int64_t>(shape.num_neurons, 64);
  const int64_t input_bytes = rows * shape.model_dim * int64_t{sizeof(uint16_t)};
  const int64_t active_bytes = rows * words * int64_t{sizeof(uint64_t)};
  ISOTHERM_RETURN_IF_ERROR(Expect("input's size", static_cast<int64_t>(request.input().size()),
                                  input_bytes, input_bytes));
  ISOTHERM_RETURN_IF_ERROR(Expect("active's size", static_cast<int64_t>(request.active().size()),
                                  active_bytes, active_bytes));
  ISOTHERM_RETURN_IF_ERROR(Expect("row_keys' count", request.row_keys_size(), rows, rows));
  message->header.num_rows = request.num_rows();
  message->header.cut = request.cut();
  CopyBytes(request.input(), &message->z);
  CopyBytes(request.active(), &message->active);
  if (const int64_t tail = shape.num_neurons % 64; tail != 0) {
    for (int64_t row = 0; row < rows; ++row) {
      message->active[static_cast<size_t>(row * words + words - 1)] &= (uint64_t{1} << tail) - 1;
    }
  }
  message->row_keys.assign(request.row_keys().begin(), request.row_keys().end());
  message->partial.resize(static_cast<size_t>(rows * shape.model_dim));
  return absl::OkStatus();
}

void ToProto(const LayerMessage& message, const shm::ColdLayerOutcome& outcome,
             int64_t bundle_bytes, v1::ComputeLayerResponse* response) {
  response->Clear();
  response->set_step_id(message.header.step_id);
  response->set_epoch(message.header.epoch);
  response->set_layer(message.header.layer);
  response->set_attempt(message.header.attempt);
  switch (outcome.status) {
    case shm::ColdLayerStatus::kDone:
      response->set_status(v1::COMPUTE_LAYER_STATUS_DONE);
      break;
    case shm::ColdLayerStatus::kStaleEpoch:
      response->set_status(v1::COMPUTE_LAYER_STATUS_STALE_EPOCH);
      return;
    case shm::ColdLayerStatus::kPoison:
    case shm::ColdLayerStatus::kCancelled:
      response->set_status(v1::COMPUTE_LAYER_STATUS_POISON);
      return;
  }
  response->set_partial(reinterpret_cast<const char*>(message.partial.data()),
                        message.partial.size() * sizeof(float));
  response->set_work_hash(outcome.work_hash);
  response->set_neurons(outcome.neurons);
  response->set_compute_us(outcome.compute_us);
  response->set_bytes_read(outcome.neurons * bundle_bytes);
}

}  // namespace isotherm::cpu
