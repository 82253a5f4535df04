#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace isotherm {

// One Execute call from its start to its end. Kept alive by its owner until WaitUntilDone() has
// returned.
class ExecuteStream : public grpc::ClientBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>,
                      public std::enable_shared_from_this<ExecuteStream> {
 public:
  // Runs on gRPC's threads, one message at a time; false closes the stream.
  using OnMessage = std::function<bool(ExecuteStream&, const v1::ExecuteResponse&)>;
  explicit ExecuteStream(OnMessage on_message) : on_message_(std::move(on_message)) {}

  // Once, on an object that a shared_ptr owns already.
  void Start(v1::WorkerService::Stub& stub);

  // Never blocks. Dropped once the stream is done.
  void Send(v1::ExecuteRequest request);
  void Cancel() { context_.TryCancel(); }
  grpc::Status WaitUntilDone();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const OnMessage on_message_;
  grpc::ClientContext context_;
  v1::ExecuteResponse response_;
  absl::Mutex mu_;
  std::deque<v1::ExecuteRequest> queue_ ABSL_GUARDED_BY(mu_);  // front: being written
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool reads_ended_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
