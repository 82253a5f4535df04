#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "gpu_worker/engine/step_engine.h"
#include "models/model_file.h"

namespace isotherm::gpu {

enum class ColdTransport { kShm, kGrpc };

// Keeps the engine attached to the cpu_worker at `address`: attaches when it appears, again when it
// was replaced. Its thread is "cpu-connector".
class CpuWorkerConnector {
 public:
  struct Options {
    std::string address;
    ColdTransport transport = ColdTransport::kShm;
    std::string instance_id;
    int32_t max_rows = 0;
    bool device_rings = false;  // DeviceInfo::rings_by_itself
  };
  CpuWorkerConnector(const Options& options, const ModelFile& model, StepEngine& engine);
  ~CpuWorkerConnector();

 private:
  void Loop();
  absl::StatusOr<std::shared_ptr<ColdAttachment>> TryAttach();

  const Options options_;
  const ModelFile& model_;
  StepEngine& engine_;
  std::mutex mu_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace isotherm::gpu
