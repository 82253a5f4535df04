#include "tests/integration/prepare_proxy.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <filesystem>
#include <utility>

#include "common/base/check.h"
#include "common/rpc/channel.h"

namespace isotherm::integration {

PrepareProxy::PrepareProxy() {
  directory_ = (std::filesystem::temp_directory_path() / "isotherm-proxy-XXXXXX").string();
  ISOTHERM_CHECK(::mkdtemp(directory_.data()) != nullptr);
  address_ = "unix:" + directory_ + "/proxy.sock";
  auto server = rpc::Server::Start({.listen = address_}, {this});
  ISOTHERM_CHECK(server.ok());
  server_ = *std::move(server);
}

PrepareProxy::~PrepareProxy() {
  server_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void PrepareProxy::SetTarget(const std::string& address) {
  std::shared_ptr<v1::WorkerService::Stub> stub =
      v1::WorkerService::NewStub(rpc::MakeChannel(address));
  std::lock_guard lock(mu_);
  target_ = std::move(stub);
}

void PrepareProxy::SetHook(Hook hook) {
  std::lock_guard lock(mu_);
  hook_ = std::move(hook);
}

std::shared_ptr<v1::WorkerService::Stub> PrepareProxy::Target() {
  std::lock_guard lock(mu_);
  return target_;
}

void PrepareProxy::Call(v1::PreparePhase phase, Moment moment) {
  Hook hook;
  {
    std::lock_guard lock(mu_);
    hook = hook_;
  }
  if (hook != nullptr) hook(phase, moment);
}

grpc::Status PrepareProxy::Describe(grpc::ServerContext*, const v1::DescribeRequest* request,
                                    v1::DescribeResponse* response) {
  const auto target = Target();
  if (target == nullptr) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no target yet");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  return target->Describe(&context, *request, response);
}

grpc::Status PrepareProxy::Prepare(
    grpc::ServerContext* server_context,
    grpc::ServerReaderWriter<v1::PrepareResponse, v1::PrepareRequest>* stream) {
  const auto target = Target();
  if (target == nullptr) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no target yet");
  const std::unique_ptr<grpc::ClientContext> context =
      grpc::ClientContext::FromServerContext(*server_context);
  const auto worker = target->Prepare(context.get());
  v1::PrepareRequest request;
  while (stream->Read(&request)) {
    Call(request.phase(), Moment::kAsked);
    if (!worker->Write(request)) return worker->Finish();
    v1::PrepareResponse response;
    do {
      if (!worker->Read(&response)) return worker->Finish();
      Call(request.phase(), response.ready() ? Moment::kAnswered : Moment::kCopying);
      if (!stream->Write(response)) return grpc::Status::CANCELLED;
    } while (!response.ready());
  }
  context->TryCancel();
  (void)worker->Finish();
  return grpc::Status::OK;
}

}  // namespace isotherm::integration
