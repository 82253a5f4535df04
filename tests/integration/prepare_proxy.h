#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "common/rpc/server.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace isotherm::integration {

// Stands between a placement_service and a worker, passes Describe and Prepare on, and lets a test
// act at each moment of a migration: real processes die exactly there, in release builds. Execute
// is not passed on: a gateway talks to the worker itself.
class PrepareProxy final : public v1::WorkerService::Service {
 public:
  enum class Moment {
    kAsked,     // the placement_service sent the phase; the worker has not heard of it
    kCopying,   // the worker told how far its copy is
    kAnswered,  // the worker is done; the placement_service does not know yet
  };
  // Called on a thread of the proxy's server.
  using Hook = std::function<void(v1::PreparePhase phase, Moment moment)>;

  // Listens on a socket of its own; answers Unavailable until it has a target.
  PrepareProxy();
  ~PrepareProxy() override;

  std::string address() const { return address_; }
  void SetTarget(const std::string& address);
  void SetHook(Hook hook);

  grpc::Status Describe(grpc::ServerContext* context, const v1::DescribeRequest* request,
                        v1::DescribeResponse* response) override;
  grpc::Status Prepare(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::PrepareResponse, v1::PrepareRequest>* stream) override;

 private:
  std::shared_ptr<v1::WorkerService::Stub> Target();
  void Call(v1::PreparePhase phase, Moment moment);

  std::string directory_, address_;
  std::mutex mu_;
  std::shared_ptr<v1::WorkerService::Stub> target_;  // kept by the calls that use it
  Hook hook_;
  std::unique_ptr<rpc::Server> server_;
};

}  // namespace isotherm::integration
