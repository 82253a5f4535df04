#include "cpu_worker/service/compute_layer_reactor.h"

#include "common/rpc/status.h"

namespace isotherm::cpu {

ComputeLayerReactor::ComputeLayerReactor(CpuWorker& worker, ComputeQueue& queue) : queue_(queue) {
  const absl::StatusOr<CpuWorker::Parts*> parts = worker.parts();
  if (!parts.ok()) {
    Finish(rpc::ToGrpcStatus(parts.status()));
    return;
  }
  parts_ = *parts;
  StartRead(&request_);
}

// One operation is under way at any time (a read, a task, a write), so nothing here needs a lock,
// and a cancelled stream ends when that operation fails.
void ComputeLayerReactor::OnReadDone(bool ok) {
  if (!ok) return Finish(grpc::Status::OK);
  const absl::Status status =
      FromProto(request_, parts_->arena->geometry().shape, parts_->engine->max_rows(), &message_);
  if (!status.ok()) return Finish(rpc::ToGrpcStatus(status));
  queue_.Add([this] { Compute(); });
}

void ComputeLayerReactor::Compute() {
  if (message_.header.layer == shm::kEndOfStep) {
    parts_->engine->EndStep(message_.header);
    StartRead(&request_);
    return;
  }
  const shm::ColdLayerOutcome outcome = parts_->engine->Compute(message_.Task());
  ToProto(message_, outcome, parts_->arena->geometry().bundle_bytes, &response_);
  StartWrite(&response_);
}

void ComputeLayerReactor::OnWriteDone(bool ok) {
  ok ? StartRead(&request_) : Finish(rpc::ToGrpcStatus(absl::CancelledError("the stream broke")));
}

void ComputeLayerReactor::OnDone() { delete this; }

}  // namespace isotherm::cpu
