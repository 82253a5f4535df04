#include "cli/serve/session.h"

#include <poll.h>

#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cli/config/paths.h"
#include "cli/serve/start_remedy.h"
#include "cli/supervise/server_record.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace fs = std::filesystem;

absl::Status InterruptedError() {
  return WithExitCode(absl::CancelledError("interrupted"), static_cast<ExitCode>(130));
}

absl::StatusOr<std::unique_ptr<Session>> Session::Open(const ServeOptions& options,
                                                       const std::string& url, Console& console,
                                                       Interrupts& interrupts,
                                                       MakeClient make_client) {
  std::unique_ptr<Session> session(new Session());
  if (!url.empty()) {
    session->address_ = url;
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(const fs::path model, ResolveModel(options.model, options.model_dir));
    const std::optional<ServerRecord> running = ReadServerRecord(options.state_dir);
    if (running.has_value() && running->ready && running->model == model.string()) {
      session->address_ = running->gateway;
    } else {
      ISOTHERM_RETURN_IF_ERROR(session->StartServer(options, model, console, interrupts));
    }
  }
  session->client_ = make_client(session->address_);
  return session;
}

absl::Status Session::StartServer(const ServeOptions& options, const fs::path& model,
                                  Console& console, Interrupts& interrupts) {
  std::error_code error;
  const auto bytes = fs::file_size(model, error);
  view_ = std::make_unique<ServerView>(console, error ? 1 : static_cast<int64_t>(bytes),
                                       /*quiet=*/true);
  LocalServerOptions server_options{
      .serve = options, .model = model, .program_dir = ProgramDir(), .lasting = false};
  server_options.restart.max_failures_before_first_ready = 2;
  server_options.serve.grpc_listen.clear();  // a socket of its own: no port can be in the way
  if (options.log_level == "info") server_options.serve.log_level = "warn";
  view_->Print(absl::StrCat("isotherm: starting four services for ", model.filename().string()));
  ISOTHERM_ASSIGN_OR_RETURN(server_, LocalServer::Start(server_options, *view_));
  while (!server_->ready() && !server_->finished()) {
    pollfd fds[2] = {{interrupts.fd(), POLLIN, 0}, {server_->event_fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    server_->AckEvent();
    if (interrupts.Take() != 0) {
      server_.reset();
      return InterruptedError();
    }
  }
  if (server_->finished()) {
    const absl::Status result = server_->result();
    return WithStartRemedy(result.ok() ? absl::InternalError("the services ended") : result, model);
  }
  address_ = server_->record().gateway;
  return absl::OkStatus();
}

absl::StatusOr<ServedModel> Session::Model() {
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<ServedModel> models, client_->ModelInfo());
  if (models.empty()) {
    return WithExitCode(absl::UnavailableError("the server has no model"), ExitCode::kUnavailable);
  }
  return std::move(models.front());
}

}  // namespace isotherm::cli
