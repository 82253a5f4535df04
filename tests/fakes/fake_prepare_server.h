#pragma once

#include <memory>
#include <string>

#include "common/rpc/server.h"
#include "isotherm/v1/worker.grpc.pb.h"
#include "tests/fakes/fake_prepare_worker.h"

namespace isotherm {

// A FakePrepareWorker as a WorkerService on a real socket (Execute is unimplemented). `worker`
// outlives it. RETIRE of a pinned epoch answers "not ready" once and then reads on: the client's
// timeout decides.
class FakePrepareServer final : public v1::WorkerService::CallbackService {
 public:
  // `listen`: "127.0.0.1:0" or "unix:/path".
  FakePrepareServer(FakePrepareWorker& worker, const std::string& listen);
  ~FakePrepareServer() override;

  const std::string& address() const { return server_->address(); }

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest* request,
                                     v1::DescribeResponse* response) override;
  grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* Prepare(
      grpc::CallbackServerContext* context) override;

 private:
  FakePrepareWorker& worker_;
  std::unique_ptr<rpc::Server> server_;
};

}  // namespace isotherm
