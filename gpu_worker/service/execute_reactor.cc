#include "gpu_worker/service/execute_reactor.h"

#include <utility>

#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm::gpu {
namespace {

using Outlet = rpc::BidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>::Outlet;

class StreamSink final : public StepSink {
 public:
  explicit StreamSink(std::shared_ptr<Outlet> outlet) : outlet_(std::move(outlet)) {}
  void OnHello(const WorkerHello& hello) override {
    v1::ExecuteResponse response;
    *response.mutable_hello() = rpc::ToProto(hello);
    outlet_->Send(std::move(response));
  }
  void OnResult(const StepResult& result) override {
    v1::ExecuteResponse response;
    *response.mutable_result() = rpc::ToProto(result);
    outlet_->Send(std::move(response));
  }
  void OnUnavailable(const absl::Status& why) override { outlet_->Close(rpc::ToGrpcStatus(why)); }

 private:
  const std::shared_ptr<Outlet> outlet_;
};

}  // namespace

ExecuteReactor::ExecuteReactor(StepEngine& engine) : engine_(engine) {
  connection_ = engine_.Connect(std::make_shared<StreamSink>(outlet()));
  Begin();
}

void ExecuteReactor::OnMessage(const v1::ExecuteRequest& request) {
  if (request.has_abort()) {
    engine_.Abort(connection_);
    return;
  }
  if (request.has_kv_demand()) {
    const absl::StatusOr<KvDemand> demand = rpc::FromProto(request.kv_demand());
    if (!demand.ok()) return outlet()->Close(rpc::ToGrpcStatus(demand.status()));
    engine_.SetKvDemand(connection_, *demand);
    return;
  }
  absl::StatusOr<StepRequest> step = rpc::FromProto(request.step());
  const absl::Status status =
      step.ok() ? engine_.Submit(connection_, *std::move(step)) : step.status();
  if (!status.ok()) outlet()->Close(rpc::ToGrpcStatus(status));
}

void ExecuteReactor::OnClosed() { engine_.Disconnect(connection_); }

}  // namespace isotherm::gpu
