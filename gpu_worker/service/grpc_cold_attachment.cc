#include "gpu_worker/service/grpc_cold_attachment.h"

#include <grpcpp/grpcpp.h>

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm::gpu {

GrpcColdAttachment::GrpcColdAttachment(std::shared_ptr<grpc::Channel> channel,
                                       const BundleLayout& layout, uint64_t nonce)
    : layout_(layout), nonce_(nonce), stub_(v1::CpuWorkerService::NewStub(std::move(channel))) {
  stream_ = stub_->ComputeLayer(&context_);
  reader_ = std::thread([this] { ReadLoop(); });
}

GrpcColdAttachment::~GrpcColdAttachment() {
  context_.TryCancel();
  reader_.join();
}

void GrpcColdAttachment::ReadLoop() {
  v1::ComputeLayerResponse response;
  while (stream_->Read(&response)) {
    {
      std::lock_guard lock(mu_);
      responses_.push_back(std::move(response));
    }
    changed_.notify_all();
  }
  {
    std::lock_guard lock(mu_);
    closed_ = true;
  }
  changed_.notify_all();
}

bool GrpcColdAttachment::alive() const {
  std::lock_guard lock(mu_);
  return !closed_;
}

absl::Status GrpcColdAttachment::Lost(const char* what) {
  {
    std::lock_guard lock(mu_);
    closed_ = true;
  }
  context_.TryCancel();
  return absl::UnavailableError(what);
}

absl::Status GrpcColdAttachment::Post(const ColdLayer& layer) {
  const auto rows = static_cast<size_t>(layer.num_rows);
  request_.set_step_id(layer.step_id);
  request_.set_epoch(layer.epoch);
  request_.set_layer(layer.layer);
  request_.set_attempt(layer.attempt);
  request_.set_num_rows(layer.num_rows);
  request_.set_input(layer.z, rows * static_cast<size_t>(layout_.model_dim) * sizeof(uint16_t));
  request_.set_active(
      layer.active, rows * static_cast<size_t>((layout_.num_neurons + 63) / 64) * sizeof(uint64_t));
  request_.set_cut(layer.cut);
  request_.set_deadline_us(std::max<int64_t>(
      1, std::chrono::duration_cast<std::chrono::microseconds>(layer.deadline -
                                                               std::chrono::steady_clock::now())
             .count()));
  request_.mutable_row_keys()->Assign(layer.row_keys, layer.row_keys + rows);
  request_.set_nonce(nonce_);
  current_.set_step_id(layer.step_id);
  return stream_->Write(request_) ? absl::OkStatus() : Lost("the cpu_worker's stream is closed");
}

absl::StatusOr<ColdResult> GrpcColdAttachment::Wait(TimePoint deadline) {
  while (true) {
    {
      std::unique_lock lock(mu_);
      if (!changed_.wait_until(lock, deadline, [this] { return closed_ || !responses_.empty(); })) {
        return absl::DeadlineExceededError("the cpu_worker did not answer in time");
      }
      if (responses_.empty()) return absl::UnavailableError("the cpu_worker's stream is closed");
      current_ = std::move(responses_.front());
      responses_.pop_front();
    }
    // A late answer to a post that was given up.
    if (current_.step_id() != request_.step_id() || current_.layer() != request_.layer() ||
        current_.attempt() != request_.attempt() || current_.epoch() != request_.epoch()) {
      continue;
    }
    switch (current_.status()) {
      case v1::COMPUTE_LAYER_STATUS_DONE:
        break;
      case v1::COMPUTE_LAYER_STATUS_STALE_EPOCH:
        return absl::AbortedError(
            absl::StrCat("the cpu_worker does not know epoch ", request_.epoch()));
      default:
        return Lost("the cpu_worker failed to compute a layer");
    }
    const size_t count =
        static_cast<size_t>(request_.num_rows()) * static_cast<size_t>(layout_.model_dim);
    if (current_.partial().size() != count * sizeof(float))
      return Lost("the cpu_worker sent a result of another size");
    const auto* partial = reinterpret_cast<const float*>(current_.partial().data());
    for (size_t i = 0; i < count; ++i) {
      if (!std::isfinite(partial[i])) return Lost("the cpu_worker sent values that are not finite");
    }
    return ColdResult{.partial = partial,
                      .work_hash = current_.work_hash(),
                      .neurons = current_.neurons(),
                      .compute_us = current_.compute_us()};
  }
}

absl::Status GrpcColdAttachment::EndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                                           TimePoint) {
  v1::ComputeLayerRequest request;
  request.set_step_id(step_id);
  request.set_epoch(epoch);
  request.set_layer(-1);
  request.set_attempt(attempt);
  request.set_nonce(nonce_);
  return stream_->Write(request) ? absl::OkStatus() : Lost("the cpu_worker's stream is closed");
}

}  // namespace isotherm::gpu
