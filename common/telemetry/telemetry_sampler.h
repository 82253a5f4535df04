#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/telemetry/neuron_counters.h"
#include "common/telemetry/telemetry_sink.h"

namespace isotherm {

struct TelemetrySamplerOptions {
  std::string instance_id;
  std::string model_digest;
  std::chrono::milliseconds interval{1000};
};

// Reads a worker's counters on a thread of its own ("telemetry") and sends what was added. The
// counters are running totals, so while nobody takes reports nothing is lost and nothing grows: the
// first report that goes out has all of it. A step never waits for any of this.
class TelemetrySampler {
 public:
  using ReadCounters = std::function<absl::Status(NeuronCounters*)>;

  // What `read` uses outlives the sampler. `read` failing with Unimplemented ends the sampling.
  TelemetrySampler(const TelemetrySamplerOptions& options, ReadCounters read,
                   std::unique_ptr<TelemetrySink> sink);
  ~TelemetrySampler();
  TelemetrySampler(const TelemetrySampler&) = delete;
  TelemetrySampler& operator=(const TelemetrySampler&) = delete;

 private:
  void Loop();

  const TelemetrySamplerOptions options_;
  const ReadCounters read_;
  const std::unique_ptr<TelemetrySink> sink_;
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // declared last: joined before what it uses goes
};

}  // namespace isotherm
