#include "placement_service/server.h"

#include <pthread.h>

#include <filesystem>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "common/rpc/server.h"
#include "models/profile/activation_profile.h"
#include "placement_service/plan/plan_publisher.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/profile/placement_profile.h"
#include "placement_service/service/grpc_worker_client.h"
#include "placement_service/service/placement_service.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {
namespace {

// How soon a worker that restarted is noticed.
constexpr std::chrono::milliseconds kPollInterval{500};

absl::StatusOr<PlacementProfile> LoadProfile(const PlacementOptions& options) {
  std::string path = options.profile_file;
  if (path.empty()) {
    path = ProfilePathFor(options.model);
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      if (!options.profile.empty()) {
        return WithExitCode(
            absl::NotFoundError(absl::StrCat("--profile ", options.profile, ": there is no ", path,
                                             "; name the file with --profile-file")),
            ExitCode::kBadData);
      }
      LogInfo("no {}: hot neurons are split evenly over the layers", path);
      return PlacementProfile();
    }
  }
  return LoadPlacementProfile(path, options.profile);
}

absl::StatusOr<std::unique_ptr<PlanStore>> OpenStore(const std::string& state_dir) {
  std::error_code error;
  std::filesystem::create_directories(state_dir, error);
  if (error) {
    return WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                            "--state-dir ", state_dir, " cannot be made: ", error.message())),
                        ExitCode::kShortage);
  }
  return PlanStore::Open({.path = state_dir + "/placement.sqlite"});
}

}  // namespace

absl::Status RunPlacementServer(const PlacementOptions& options, ShutdownSignal& shutdown) {
  ISOTHERM_ASSIGN_OR_RETURN(PlacementProfile profile, LoadProfile(options));
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<PlanStore> store, OpenStore(options.state_dir));
  GrpcWorkerClient gpu("gpu_worker", options.gpu_worker);
  std::unique_ptr<GrpcWorkerClient> cpu;
  if (!options.cpu_worker.empty()) {
    cpu = std::make_unique<GrpcWorkerClient>("cpu_worker", options.cpu_worker);
  }
  PublisherOptions publisher_options{
      .requested_bytes = options.budget_bytes,
      .start_options = absl::StrCat("budget ", options.budget_bytes, " profile ", profile.name),
      .follow = options.follow,
      .objective = options.objective};
  publisher_options.mover.moves_per_second = options.moves_per_second;
  TrafficOptions traffic_options;
  traffic_options.profile.half_life_tokens = options.half_life_tokens;
  TrafficModel traffic(traffic_options, Clock::Real());
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<PlanPublisher> publisher,
                            PlanPublisher::Create(publisher_options, *store, gpu, cpu.get(),
                                                  std::move(profile), traffic, Clock::Real()));
  PlacementService service(*publisher);
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                            rpc::Server::Start({.listen = options.listen}, {&service}));
  AnnounceListening(server->address());
  server->SetServing(true);

  absl::Status publisher_status;
  std::thread thread([&] {
    ::pthread_setname_np(::pthread_self(), "publisher");
    publisher_status = publisher->Run(kPollInterval, AnnounceReady);
    if (!publisher_status.ok()) shutdown.Trigger();
  });
  const int signal = shutdown.Wait();
  if (signal != 0) LogInfo("signal {}: stopping", signal);
  server->SetServing(false);
  publisher->Stop();
  thread.join();
  server->Shutdown(std::chrono::milliseconds(0));
  return signal == 0 ? publisher_status : absl::OkStatus();
}

}  // namespace isotherm
