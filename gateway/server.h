#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "gateway/scheduling/scheduler.h"
#include "gateway/scheduling/scheduler_thread.h"
#include "gateway/text/model_slot.h"

namespace isotherm {

namespace rpc {
class Server;
}
class GrpcPlacementClient;
class GrpcWorkerClient;
class InferenceService;

struct GatewayOptions {
  std::string listen = "127.0.0.1:8001";
  std::string gpu_worker;
  std::string cpu_worker;
  std::string placement;   // empty: none; steps run under epochs that the workers share
  std::string model_name;  // what clients call it
  std::string alias;       // another name
  std::chrono::milliseconds max_time{600'000};
  SchedulerOptions scheduler;
};

// The gateway: listens at once (not serving), connects to its peers in whatever order they come,
// serves when the model's text side is set and a gpu_worker is attached. Thread-safe.
class GatewayServer {
 public:
  // on_ready: called once, when it serves for the first time; must not block.
  static absl::StatusOr<std::unique_ptr<GatewayServer>> Start(const GatewayOptions& options,
                                                              std::function<void()> on_ready);
  ~GatewayServer();

  const std::string& address() const;
  void SetModel(std::shared_ptr<const TextModel> model);
  SchedulerState state() const { return thread_->state(); }
  // Answers that are not yet sent, or not yet taken by their readers.
  int64_t open_answers() const;

  // Admits nothing more, lets what was admitted finish for up to `timeout`, cuts the rest with an
  // error, closes the port. False if something was cut. Blocks; idempotent.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  GatewayServer(const GatewayOptions& options, std::function<void()> on_ready);
  void UpdateHealth();

  const std::function<void()> on_ready_;
  ModelSlot models_;
  std::unique_ptr<GrpcWorkerClient> gpu_;
  std::unique_ptr<GrpcWorkerClient> cpu_;
  std::unique_ptr<GrpcPlacementClient> placement_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<SchedulerThread> thread_;
  std::unique_ptr<InferenceService> service_;
  absl::Mutex mu_;
  std::unique_ptr<rpc::Server> server_ ABSL_GUARDED_BY(mu_);
  bool was_ready_ ABSL_GUARDED_BY(mu_) = false;
  bool drained_ = false;
  std::string address_;
};

}  // namespace isotherm
