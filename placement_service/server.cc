#include "placement_service/server.h"

#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "common/rpc/server.h"
#include "models/profile/activation_profile.h"
#include "placement_service/plan/plan_publisher.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/profile/placement_profile.h"
#include "placement_service/service/grpc_worker_port.h"
#include "placement_service/service/placement_service.h"

namespace isotherm {
namespace {

constexpr std::chrono::milliseconds kShutdownGrace{2000};

}  // namespace

absl::Status Validate(const PlacementServiceOptions& options) {
  const auto need = [](const std::string& value, absl::string_view flag) {
    return value.empty()
               ? WithExitCode(absl::InvalidArgumentError(absl::StrCat(flag, " is missing")),
                              ExitCode::kUsage)
               : absl::OkStatus();
  };
  ISOTHERM_RETURN_IF_ERROR(need(options.listen, "--listen"));
  ISOTHERM_RETURN_IF_ERROR(need(options.gpu_worker, "--gpu-worker"));
  ISOTHERM_RETURN_IF_ERROR(need(options.cpu_worker, "--cpu-worker"));
  return need(options.state_dir, "--state-dir");
}

absl::Status RunPlacementService(const PlacementServiceOptions& options, ShutdownSignal& shutdown) {
  std::error_code error;
  std::filesystem::create_directories(options.state_dir, error);
  if (error) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat("cannot make --state-dir '", options.state_dir,
                                                  "': ", error.message(), "; choose another")),
        ExitCode::kShortage);
  }
  PlacementProfile profile;
  const std::string beside = ProfilePathFor(options.model);
  const std::string path = !options.profile_file.empty()     ? options.profile_file
                           : std::filesystem::exists(beside) ? beside
                                                             : "";
  if (!path.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(profile, LoadPlacementProfile(path, options.profile));
    SPDLOG_INFO("activation profile '{}' of {}", profile.name, path);
  } else {
    SPDLOG_INFO("no activation profile: the first plan is even across layers");
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<PlanStore> store,
      PlanStore::Open({.path = absl::StrCat(options.state_dir, "/placement.sqlite")}));
  GrpcWorkerPort gpu("gpu_worker", options.gpu_worker), cpu("cpu_worker", options.cpu_worker);
  PlanPublisher publisher(*store, gpu, cpu, std::move(profile),
                          {.budget_bytes = options.budget_bytes}, Clock::Real());
  PlacementServiceImpl service(*store, publisher);
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                            rpc::Server::Start({.listen = options.listen}, {&service}));
  AnnounceListening(server->address());
  ISOTHERM_RETURN_IF_ERROR(publisher.Start());
  server->SetServing(true);
  AnnounceReady();
  shutdown.Wait();
  server->Shutdown(kShutdownGrace);
  return absl::OkStatus();
}

}  // namespace isotherm
