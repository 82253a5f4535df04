#include "cpu_worker/engine/scrubber.h"

#include <pthread.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/process/log.h"

namespace isotherm::cpu {

Scrubber::Scrubber(Arena& arena, const BundleSource& source, WorkerEvents& events,
                   OnBeyondRepair on_beyond_repair)
    : arena_(arena),
      source_(source),
      events_(events),
      on_beyond_repair_(std::move(on_beyond_repair)) {}

Scrubber::~Scrubber() {
  {
    absl::MutexLock lock(&stop_mu_);
    stop_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Scrubber::Start(int64_t bytes_per_second) {
  const absl::Duration pause = absl::Seconds(1) * static_cast<double>(arena_.group_bytes()) /
                               static_cast<double>(std::max<int64_t>(1, bytes_per_second));
  thread_ = std::thread([this, pause] {
    ::pthread_setname_np(::pthread_self(), "scrub");
    Loop(pause);
  });
}

void Scrubber::Loop(absl::Duration pause) {
  while (true) {
    {
      absl::MutexLock lock(&stop_mu_);
      if (stop_mu_.AwaitWithTimeout(absl::Condition(&stop_), pause)) return;
    }
    const absl::Status status = CheckNext();
    if (status.ok() || absl::IsDataLoss(status)) continue;
    on_beyond_repair_(status);
    return;
  }
}

absl::Status Scrubber::CheckNext() {
  absl::MutexLock lock(&mu_);
  const int64_t group = next_;
  next_ = (next_ + 1) % arena_.num_groups();
  absl::Status damage = arena_.CheckGroup(group);
  if (damage.ok()) return damage;
  LogError("{}", std::string(damage.message()));
  const absl::StatusOr<int64_t> mended = arena_.MendGroup(group, source_);
  if (mended.ok()) LogWarning("{} bytes of it were written anew from the model file", *mended);
  // After the mending, or what is run again would meet the damage again.
  StepResult report;
  report.error_code = static_cast<int32_t>(damage.code());
  report.error_message = std::string(damage.message());
  events_.StepFinished(report);
  // Not DataLoss: that one is mended.
  return mended.ok() ? damage : absl::FailedPreconditionError(mended.status().message());
}

}  // namespace isotherm::cpu
