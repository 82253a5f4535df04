#include "common/rpc/reflection_v1.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>
#include <grpcpp/support/server_callback.h>

#include <utility>

namespace isotherm::rpc {
namespace {

constexpr char kOurs[] = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
constexpr char kTheirs[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

// A call that ends at once.
class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// One stream, a question at a time: read it here, write it there, read the answer, write it here.
// Deletes itself. The upstream call ends before Finish() is called, and so before this does.
class Relay final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Relay(std::shared_ptr<grpc::GenericStub> stub)
      : stub_(std::move(stub)), upstream_(*this) {
    stub_->PrepareBidiStreamingCall(&context_, kTheirs, {}, &upstream_);
    upstream_.AddHold();  // operations are started from outside its own callbacks
    upstream_.StartCall();
    StartRead(&question_);
  }

  void OnReadDone(bool ok) override {
    if (ok) return upstream_.StartWrite(&question_);
    upstream_.StartWritesDone();
    upstream_.RemoveHold();
  }
  void OnWriteDone(bool ok) override {
    if (ok) return StartRead(&question_);
    context_.TryCancel();
    upstream_.RemoveHold();
  }
  void OnCancel() override { context_.TryCancel(); }
  void OnDone() override { delete this; }

 private:
  class Upstream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    explicit Upstream(Relay& relay) : relay_(relay) {}
    void OnWriteDone(bool ok) override { ok ? StartRead(&relay_.answer_) : RemoveHold(); }
    void OnReadDone(bool ok) override { ok ? relay_.StartWrite(&relay_.answer_) : RemoveHold(); }
    void OnDone(const grpc::Status& status) override { relay_.Finish(status); }

   private:
    Relay& relay_;
  };

  const std::shared_ptr<grpc::GenericStub> stub_;
  grpc::ClientContext context_;
  Upstream upstream_;
  grpc::ByteBuffer question_, answer_;
};

}  // namespace

void ReflectionV1::SetUpstream(std::shared_ptr<grpc::ChannelInterface> channel) {
  std::lock_guard lock(mu_);
  upstream_ = std::make_shared<grpc::GenericStub>(std::move(channel));
}

void ReflectionV1::ClearUpstream() {
  std::lock_guard lock(mu_);
  upstream_ = nullptr;
}

grpc::ServerGenericBidiReactor* ReflectionV1::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  if (context->method() != kOurs) {
    return new Refusal({grpc::StatusCode::UNIMPLEMENTED, "no such method here"});
  }
  std::lock_guard lock(mu_);
  if (upstream_ == nullptr) {
    return new Refusal({grpc::StatusCode::UNAVAILABLE, "reflection is not ready; try again"});
  }
  return new Relay(upstream_);
}

}  // namespace isotherm::rpc
