#include "cli/serve/local_server.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdint>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/serve/four_services.h"
#include "cli/ui/remedy.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

constexpr std::chrono::seconds kTemporaryDrain{5};
// What the gateway gets beyond its own drain deadline before it is killed.
constexpr std::chrono::seconds kDrainMargin{2};

// Two servers on one state folder would write one plan store.
absl::StatusOr<UniqueFd> LockStateDir(const fs::path& state_dir) {
  UniqueFd fd(::open((state_dir / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (fd.valid() && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  std::string who = "another server";
  if (const auto record = ReadServerRecord(state_dir); record.has_value()) {
    absl::StrAppend(&who, " (pid ", record->pid, ", ", record->gateway, ")");
  }
  return WithTry(WithExitCode(absl::ResourceExhaustedError(
                                  absl::StrCat(who, " uses the state folder ", state_dir.string())),
                              ExitCode::kShortage),
                 "stop it, or give this one a folder of its own with --state-dir");
}

}  // namespace

// Keeps the record and the ready flag up to date, then passes each event on.
class LocalServer::Tracker final : public SupervisorObserver {
 public:
  Tracker(LocalServer& server, SupervisorObserver& next) : server_(server), next_(next) {}

  void OnStarted(absl::string_view service, int64_t pid) override { next_.OnStarted(service, pid); }
  void OnListening(absl::string_view service, absl::string_view address) override {
    if (service == "gateway") {
      std::lock_guard lock(server_.mu_);
      server_.record_.gateway = std::string(address);
    }
    WriteRecord();
    next_.OnListening(service, address);
  }
  void OnProgress(double share) override { next_.OnProgress(share); }
  void OnAllReady() override {
    {
      std::lock_guard lock(server_.mu_);
      server_.record_.ready = true;
    }
    WriteRecord();
    next_.OnAllReady();
    server_.ready_ = true;
    server_.Notify();
  }
  void OnExit(absl::string_view service, absl::string_view how,
              std::optional<std::chrono::milliseconds> restart_in) override {
    next_.OnExit(service, how, restart_in);
  }
  void OnLog(const LogLine& line) override { next_.OnLog(line); }
  void OnStopping() override { next_.OnStopping(); }

 private:
  // The server serves without a record, too: clients then need --url.
  void WriteRecord() {
    if (!server_.options_.lasting) return;
    const absl::Status status =
        WriteServerRecord(server_.options_.serve.state_dir, server_.record());
    if (!status.ok()) {
      next_.OnLog({.service = "serve",
                   .level = "warning",
                   .message = std::string(status.message()),
                   .raw = std::string(status.message())});
    }
  }

  LocalServer& server_;
  SupervisorObserver& next_;
};

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const LocalServerOptions& options,
                                                                SupervisorObserver& observer) {
  std::unique_ptr<LocalServer> server(new LocalServer());
  server->options_ = options;
  if (!options.lasting) server->options_.serve.drain_timeout = kTemporaryDrain;
  ISOTHERM_ASSIGN_OR_RETURN(server->run_dir_, RunDir::Create(options.serve.state_dir));
  if (options.lasting) {
    ISOTHERM_ASSIGN_OR_RETURN(server->state_lock_, LockStateDir(options.serve.state_dir));
  }
  server->event_fd_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  ISOTHERM_CHECK(server->event_fd_.valid());

  const fs::path plan_dir =
      (options.lasting ? options.serve.state_dir : server->run_dir_->path()) / "plans";
  std::error_code error;
  fs::create_directories(plan_dir, error);
  FourServices services =
      MakeFourServices(options.serve, options.model, options.program_dir, *server->run_dir_,
                       fs::absolute(plan_dir, error), CoresBesideGpu(options.serve));
  server->record_ = services.record;
  if (options.lasting) {
    ISOTHERM_RETURN_IF_ERROR(WriteServerRecord(options.serve.state_dir, services.record));
  }
  SupervisorOptions supervise{.services = std::move(services.specs), .restart = options.restart};
  supervise.drain_timeout = server->options_.serve.drain_timeout + kDrainMargin;
  supervise.seed = std::random_device{}();
  server->tracker_ = std::make_unique<Tracker>(*server, observer);
  server->supervisor_ = std::make_unique<Supervisor>(std::move(supervise), *server->tracker_);
  server->thread_ = std::jthread([raw = server.get()] {
    absl::Status result = raw->supervisor_->Run();
    {
      std::lock_guard lock(raw->mu_);
      raw->result_ = std::move(result);
    }
    raw->finished_ = true;
    raw->Notify();
  });
  return server;
}

LocalServer::~LocalServer() {
  if (supervisor_ != nullptr && thread_.joinable()) {
    if (!finished_) supervisor_->RequestStop();
    thread_.join();
  }
  if (options_.lasting && state_lock_.valid()) {
    RemoveServerRecord(options_.serve.state_dir, ::getpid());
  }
}

void LocalServer::AckEvent() {
  uint64_t events = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &events, sizeof(events));
}

void LocalServer::Notify() {
  const uint64_t one = 1;
  ISOTHERM_CHECK(::write(event_fd_.get(), &one, sizeof(one)) == sizeof(one));
}

absl::Status LocalServer::result() const {
  std::lock_guard lock(mu_);
  return result_;
}

void LocalServer::RequestStop() { supervisor_->RequestStop(); }

ServerRecord LocalServer::record() const {
  std::lock_guard lock(mu_);
  return record_;
}

}  // namespace isotherm::cli
