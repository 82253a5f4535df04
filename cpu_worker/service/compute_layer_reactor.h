#pragma once

#include "cpu_worker/engine/cpu_worker.h"
#include "cpu_worker/service/compute_queue.h"
#include "cpu_worker/service/layer_convert.h"
#include "isotherm/v1/cpu_worker.grpc.pb.h"

namespace isotherm::cpu {

// One ComputeLayer stream: a layer, its answer, the next layer; the post that ends a step gets no
// answer. Computes on the queue's thread. A request that no sound peer sends ends the stream with
// InvalidArgument. Deletes itself when done.
class ComputeLayerReactor final
    : public grpc::ServerBidiReactor<v1::ComputeLayerRequest, v1::ComputeLayerResponse> {
 public:
  ComputeLayerReactor(CpuWorker& worker, ComputeQueue& queue);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

 private:
  void Compute();

  ComputeQueue& queue_;
  CpuWorker::Parts* parts_ = nullptr;
  v1::ComputeLayerRequest request_;
  v1::ComputeLayerResponse response_;
  LayerMessage message_;
};

}  // namespace isotherm::cpu
