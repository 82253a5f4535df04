#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "isotherm/v1/worker.grpc.pb.h"
#include "placement_service/plan/worker_port.h"

namespace isotherm {

// A worker over gRPC: Describe, and one Prepare stream per phase.
class GrpcWorkerPort final : public WorkerPort {
 public:
  GrpcWorkerPort(std::string name, const std::string& address);

  absl::string_view name() const override { return name_; }
  absl::StatusOr<WorkerDescription> Describe() override;
  absl::StatusOr<uint64_t> Run(const PhaseRequest& request) override;
  void Cancel() override;

 private:
  // Makes `context` the one that Cancel() ends; false when cancelled already.
  bool Enter(grpc::ClientContext* context);
  void Leave();

  const std::string name_;
  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  std::mutex mu_;
  grpc::ClientContext* current_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace isotherm
