#include "common/telemetry/telemetry_sampler.h"

#include <pthread.h>

#include <utility>

#include "absl/time/time.h"
#include "common/process/log.h"
#include "common/telemetry/report_builder.h"

namespace isotherm {

TelemetrySampler::TelemetrySampler(const TelemetrySamplerOptions& options, ReadCounters read,
                                   std::unique_ptr<TelemetrySink> sink)
    : options_(options), read_(std::move(read)), sink_(std::move(sink)) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "telemetry");
    Loop();
  });
}

TelemetrySampler::~TelemetrySampler() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  sink_->Cancel();
  thread_.join();
}

void TelemetrySampler::Loop() {
  using Clock = std::chrono::steady_clock;
  ReportBuilder builder(options_.instance_id, options_.model_digest);
  NeuronCounters counters;
  Clock::time_point last = Clock::now();
  bool reaches = true;
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(options_.interval));
      if (stopping_) return;
    }
    if (const absl::Status status = read_(&counters); !status.ok()) {
      LogWarning("no telemetry: {}", std::string(status.message()));
      if (absl::IsUnimplemented(status)) return;
      continue;
    }
    const Clock::time_point now = Clock::now();
    const auto interval = std::chrono::duration_cast<std::chrono::microseconds>(now - last);
    const bool sent = sink_->Send(builder.Build(counters, interval.count()));
    if (sent) {
      builder.Sent(counters);
      last = now;
    }
    if (sent != reaches) {
      reaches = sent;
      LogInfo("{}", sent ? "the placement_service takes telemetry again"
                         : "the placement_service takes no telemetry; it is kept until it does");
    }
  }
}

}  // namespace isotherm
