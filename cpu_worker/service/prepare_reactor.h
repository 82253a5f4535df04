#pragma once

#include <atomic>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cpu_worker/engine/cpu_worker.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace grpc {
class Alarm;
}

namespace isotherm::cpu {

// One Prepare stream: a request, its answer, the next request. Every phase is done at once but
// RETIRE, which answers ready=false every 200 ms while a step may still name the epoch. The first
// failure ends the stream with its status; deletes itself when done.
class PrepareReactor final
    : public grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse> {
 public:
  explicit PrepareReactor(CpuWorker& worker);
  ~PrepareReactor() override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Handle();
  // The checksum of a plan, 0 for the other phases.
  absl::StatusOr<uint64_t> Apply();
  void FinishOnce(const absl::Status& status);

  CpuWorker& worker_;
  v1::PrepareRequest request_;
  v1::PrepareResponse response_;
  std::atomic<bool> finished_{false};
  std::unique_ptr<grpc::Alarm> retry_;
};

}  // namespace isotherm::cpu
