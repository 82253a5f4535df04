#pragma once

#include <grpcpp/client_context.h>

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/scheduling/scheduler_thread.h"

namespace isotherm {

// Follows the placement_service's Watch stream and tells the scheduler of live and retired epochs;
// reconnects for ever (back-off at most 1 s). While it is away the last plan serves on.
class GrpcPlacementClient {
 public:
  explicit GrpcPlacementClient(std::string address);
  ~GrpcPlacementClient();

  void Start(SchedulerThread& scheduler);
  void Stop();
  bool connected() const;

 private:
  void Loop(SchedulerThread& scheduler);

  const std::string address_;
  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace isotherm
