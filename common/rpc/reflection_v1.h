#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <mutex>

namespace isotherm::rpc {

// grpc.reflection.v1 for a gRPC library that has reflection only under its older name, v1alpha. The
// two differ in nothing but the name, so a stream is passed on, byte for byte, to the library's own
// service on the same server. A library that serves v1 itself is asked first: a generic service
// gets the calls that no other one takes, and answers all the rest as unknown. Thread-safe.
class ReflectionV1 final : public grpc::CallbackGenericService {
 public:
  // The server's own channel to itself; Unavailable is the answer without one.
  void SetUpstream(std::shared_ptr<grpc::ChannelInterface> channel);
  // Streams that are open go on. Before the server is destroyed.
  void ClearUpstream();

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  std::mutex mu_;
  std::shared_ptr<grpc::GenericStub> upstream_;  // shared with the streams that use it
};

}  // namespace isotherm::rpc
