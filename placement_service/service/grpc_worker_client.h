#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "isotherm/v1/worker.grpc.pb.h"
#include "placement_service/plan/worker_port.h"

namespace isotherm {

// A worker over gRPC. One Prepare stream stays open over the phases of a migration, so that a
// worker may tie what it prepared to it; any failure closes it and the next phase opens another.
// Describe() and Run() by one thread, Cancel() by any.
class GrpcWorkerClient final : public WorkerPort {
 public:
  // `name` is for people: "gpu_worker".
  GrpcWorkerClient(std::string name, absl::string_view address);
  ~GrpcWorkerClient() override;

  absl::string_view name() const override { return name_; }
  absl::StatusOr<WorkerDescription> Describe() override;
  absl::StatusOr<uint64_t> Run(const PhaseRequest& request) override;
  void Cancel() override;

 private:
  struct Stream;
  absl::Status Open(std::chrono::milliseconds timeout);
  // Ends the stream and returns why the call ended: `fallback` if the peer did not say.
  absl::Status Close(const absl::Status& fallback);

  const std::string name_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  int64_t next_op_ = 1;
  std::string instance_id_;

  absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* running_ ABSL_GUARDED_BY(mu_) = nullptr;  // of a Describe
  std::unique_ptr<Stream> stream_;  // replaced under mu_, used by Run() without
};

}  // namespace isotherm
