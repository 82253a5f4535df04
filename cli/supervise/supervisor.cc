#include "cli/supervise/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/supervise/supervised_service.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr ExitCode kInterrupted = static_cast<ExitCode>(130);  // as shells report SIGINT

SteadyTime Now() { return std::chrono::steady_clock::now(); }

}  // namespace

class Supervisor::Impl {
 public:
  Impl(SupervisorOptions options, SupervisorObserver& observer)
      : options_(std::move(options)), observer_(observer), stop_fd_(::eventfd(0, EFD_CLOEXEC)) {
    ISOTHERM_CHECK(stop_fd_.valid());
    uint64_t seed = options_.seed;
    for (const ServiceSpec& spec : options_.services) {
      services_.push_back(std::make_unique<SupervisedService>(spec, options_.restart, seed++));
    }
  }

  absl::Status Run() {
    for (auto& service : services_) StartService(*service);
    while (!Finished()) {
      WaitForEvents();
      HandleTimers();
    }
    return result_;
  }

  void RequestStop() {
    const uint64_t one = 1;
    ISOTHERM_CHECK(::write(stop_fd_.get(), &one, sizeof(one)) == sizeof(one));
  }

 private:
  enum class Phase { kServing, kDraining, kStopping, kKilling };

  bool Finished() const {
    return phase_ != Phase::kServing &&
           std::none_of(services_.begin(), services_.end(),
                        [](const auto& service) { return service->running(); });
  }

  void StartService(SupervisedService& service) {
    if (phase_ != Phase::kServing) return;
    const absl::Status status = service.Start();
    if (status.ok()) {
      observer_.OnStarted(service.spec().name, service.child()->pid());
      return;
    }
    observer_.OnExit(service.spec().name, status.message(), std::nullopt);
    Fail(
        WithExitCode(status, absl::IsNotFound(status) ? ExitCode::kInternal : ExitCode::kShortage));
  }

  // What is waited for: the stop request, and each process's end and output.
  void WaitForEvents() {
    std::vector<pollfd> fds = {{stop_fd_.get(), POLLIN, 0}};
    for (auto& service : services_) {
      ChildProcess* child = service->child();
      fds.push_back({child != nullptr ? child->exit_fd() : -1, POLLIN, 0});
      fds.push_back({child != nullptr ? child->stdout_fd() : -1, POLLIN, 0});
      fds.push_back({child != nullptr ? child->stderr_fd() : -1, POLLIN, 0});
    }
    if (::poll(fds.data(), fds.size(), PollTimeout()) <= 0) return;
    for (size_t idx = 0; idx < services_.size(); ++idx) {
      SupervisedService& service = *services_[idx];
      if (fds[2 + 3 * idx].revents != 0) service.ReadStdout(observer_);
      if (fds[3 + 3 * idx].revents != 0) service.ReadStderr(observer_);
    }
    ReportReadiness();  // a service may have been ready before it ended
    for (size_t idx = 0; idx < services_.size(); ++idx) {
      if (fds[1 + 3 * idx].revents != 0) HandleExit(*services_[idx]);
    }
    if (fds[0].revents != 0) {
      uint64_t requests = 0;
      ISOTHERM_CHECK(::read(stop_fd_.get(), &requests, sizeof(requests)) == sizeof(requests));
      for (uint64_t i = 0; i < std::min<uint64_t>(requests, 2); ++i) HandleStopRequest();
    }
  }

  int PollTimeout() const {
    std::optional<SteadyTime> next = phase_deadline_;
    for (const auto& service : services_) {
      if (service->restart_at.has_value() && (!next.has_value() || *service->restart_at < *next)) {
        next = service->restart_at;
      }
    }
    if (!next.has_value()) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
  }

  void HandleExit(SupervisedService& service) {
    const ExitReport report = service.Reap(observer_);
    if (phase_ != Phase::kServing) {
      HandleExitWhileStopping(service, report);
      return;
    }
    const auto delay = service.policy().OnExit(report, was_ready_);
    observer_.OnExit(service.spec().name, report.Describe(), delay);
    all_ready_ = false;
    if (delay.has_value()) {
      service.restart_at = Now() + *delay;
      return;
    }
    std::string reason = service.last_error();
    if (reason.empty()) reason = absl::StrCat("it ended with ", report.Describe());
    const auto code = report.by_signal || report.value == 0 ? ExitCode::kInternal
                                                            : static_cast<ExitCode>(report.value);
    Fail(WithExitCode(absl::InternalError(absl::StrCat(service.spec().name, ": ", reason)), code));
  }

  void HandleExitWhileStopping(SupervisedService& service, const ExitReport& report) {
    observer_.OnExit(service.spec().name, report.Describe(), std::nullopt);
    const bool cut = !report.by_signal && report.value == static_cast<int>(ExitCode::kDrainCut);
    if (service.spec().drains_first && cut && result_.ok()) {
      result_ = WithExitCode(absl::AbortedError("the drain's deadline cut work off"),
                             ExitCode::kDrainCut);
    }
    if (phase_ == Phase::kDraining && !DrainingServiceRuns()) StopOthers();
  }

  void HandleStopRequest() {
    if (phase_ == Phase::kServing) {
      BeginStop();
    } else if (!killed_by_request_) {
      killed_by_request_ = true;
      if (result_.ok()) {
        result_ =
            WithExitCode(absl::CancelledError("stopped at once by a second signal"), kInterrupted);
      }
      KillAll();
    }
  }

  // A service's end is final: what is left stops in order.
  void Fail(absl::Status status) {
    if (result_.ok()) result_ = std::move(status);
    if (phase_ == Phase::kServing) BeginStop();
  }

  void BeginStop() {
    observer_.OnStopping();
    for (auto& service : services_) service->restart_at.reset();
    phase_ = Phase::kDraining;
    phase_deadline_ = Now() + options_.drain_timeout;
    for (auto& service : services_) {
      if (service->running() && service->spec().drains_first) service->child()->Signal(SIGTERM);
    }
    if (!DrainingServiceRuns()) StopOthers();
  }

  bool DrainingServiceRuns() const {
    return std::any_of(services_.begin(), services_.end(), [](const auto& service) {
      return service->running() && service->spec().drains_first;
    });
  }

  void StopOthers() {
    phase_ = Phase::kStopping;
    phase_deadline_ = Now() + options_.stop_timeout;
    for (auto& service : services_) {
      if (service->running()) service->child()->Signal(SIGTERM);
    }
  }

  void KillAll() {
    phase_ = Phase::kKilling;
    phase_deadline_.reset();
    for (auto& service : services_) {
      if (service->running()) service->child()->Signal(SIGKILL);
    }
  }

  void HandleTimers() {
    const SteadyTime now = Now();
    for (auto& service : services_) {
      if (service->restart_at.has_value() && *service->restart_at <= now) StartService(*service);
    }
    if (!phase_deadline_.has_value() || now < *phase_deadline_) return;
    if (phase_ == Phase::kDraining) {
      if (result_.ok()) {
        result_ = WithExitCode(absl::AbortedError("the drain's deadline cut work off"),
                               ExitCode::kDrainCut);
      }
      for (auto& service : services_) {
        if (service->running() && service->spec().drains_first) service->child()->Signal(SIGKILL);
      }
      StopOthers();
    } else {
      KillAll();
    }
  }

  void ReportReadiness() {
    if (phase_ != Phase::kServing) return;
    double sum = 0;
    bool all = true;
    for (const auto& service : services_) {
      sum += service->progress();
      all = all && service->ready();
    }
    if (!was_ready_) observer_.OnProgress(sum / static_cast<double>(services_.size()));
    if (all && !all_ready_) {
      all_ready_ = true;
      was_ready_ = true;
      observer_.OnAllReady();
    }
  }

  SupervisorOptions options_;
  SupervisorObserver& observer_;
  UniqueFd stop_fd_;
  std::vector<std::unique_ptr<SupervisedService>> services_;
  Phase phase_ = Phase::kServing;
  std::optional<SteadyTime> phase_deadline_;
  absl::Status result_;
  bool all_ready_ = false;
  bool was_ready_ = false;
  bool killed_by_request_ = false;
};

Supervisor::Supervisor(SupervisorOptions options, SupervisorObserver& observer)
    : impl_(std::make_unique<Impl>(std::move(options), observer)) {}
Supervisor::~Supervisor() = default;
absl::Status Supervisor::Run() { return impl_->Run(); }
void Supervisor::RequestStop() { impl_->RequestStop(); }

}  // namespace isotherm::cli
