#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/request/generation.h"
#include "gateway/scheduling/scheduler_thread.h"
#include "gateway/text/model_slot.h"
#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm {

struct GenerateLimits {
  std::chrono::milliseconds max_time{600'000};  // default and cap of a request, queue included
  // What a reader gets for the rest of an answer that is complete.
  std::chrono::milliseconds reader_timeout{30'000};
};

// One Generate call. It belongs to itself: it goes when gRPC is done with the call (OnDone) and, if
// the request got that far, the scheduler is done with the request (OnFinish of its Generation).
// A client that goes away or cancels ends the request within a step; its reader may be as slow as
// reader_timeout allows.
class GenerateReactor : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  static GenerateReactor* Start(grpc::CallbackServerContext& context, GenerateParams params,
                                const ModelSlot& models, SchedulerThread& scheduler,
                                const GenerateLimits& limits, std::atomic<int64_t>& open_answers);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateReactor(grpc::CallbackServerContext& context, const ModelSlot& models,
                  SchedulerThread& scheduler, const GenerateLimits& limits,
                  std::atomic<int64_t>& open_answers);
  ~GenerateReactor() override = default;
  void Begin(GenerateParams params);
  // The scheduler is done with the request, the reader perhaps not.
  void OnGenerationFinished();
  // Sends the next event or the final status, unless a write is under way.
  void Advance();
  void CancelRequest(absl::Status why);
  void Unref();

  grpc::CallbackServerContext& context_;
  const ModelSlot& models_;
  SchedulerThread& scheduler_;
  const GenerateLimits limits_;
  std::atomic<int64_t>& open_answers_;  // outlives the server
  std::string request_id_;
  std::shared_ptr<const TextModel> model_;
  std::optional<OutputQueue> queue_;
  std::optional<Generation> generation_;
  RequestHandle handle_ = 0;  // the scheduler's thread only
  std::atomic<int> refs_{1};

  absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;  // context_ must not be touched any more
  grpc::Alarm linger_;
  v1::GenerateResponse response_ ABSL_GUARDED_BY(mu_);  // being written while writing_
};

}  // namespace isotherm
