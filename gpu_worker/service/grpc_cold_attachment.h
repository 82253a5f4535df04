#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "gpu_worker/engine/cold_attachment.h"
#include "isotherm/v1/cpu_worker.grpc.pb.h"
#include "models/bundle_layout.h"

namespace isotherm::gpu {

// A cpu_worker reached by a ComputeLayer stream: the portable data path, for another host. No
// arena.
class GrpcColdAttachment final : public ColdAttachment, private ColdLink {
 public:
  GrpcColdAttachment(std::shared_ptr<grpc::Channel> channel, const BundleLayout& layout,
                     uint64_t nonce);
  ~GrpcColdAttachment() override;

  ColdLink& link() override { return *this; }
  const NeuronStore* arena() const override { return nullptr; }

 private:
  bool alive() const override;
  uint64_t hash_nonce() const override { return nonce_; }
  absl::Status Post(const ColdLayer& layer) override;
  absl::StatusOr<ColdResult> Wait(TimePoint deadline) override;
  absl::Status EndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                         TimePoint deadline) override;
  absl::Status Lost(const char* what);
  void ReadLoop();

  const BundleLayout layout_;
  const uint64_t nonce_;
  std::unique_ptr<v1::CpuWorkerService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ComputeLayerRequest, v1::ComputeLayerResponse>>
      stream_;
  v1::ComputeLayerRequest request_;
  v1::ComputeLayerResponse current_;  // holds the partial sums that Wait returned
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::deque<v1::ComputeLayerResponse> responses_;
  bool closed_ = false;
  std::thread reader_;
};

}  // namespace isotherm::gpu
