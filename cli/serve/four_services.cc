#include "cli/serve/four_services.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/version.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"

namespace isotherm::cli {
namespace {

void Add(std::vector<std::string>& args, const char* flag, std::string value) {
  args.push_back(flag);
  args.push_back(std::move(value));
}
void AddIfSet(std::vector<std::string>& args, const char* flag, const std::string& value) {
  if (!value.empty()) Add(args, flag, value);
}

std::vector<std::string> CommonArgs(const ServeOptions& options, const std::string& model,
                                    const std::string& listen) {
  return {"--model", model, "--listen", listen, "--supervised", "--log-level", options.log_level};
}

std::string CpuListOf(std::vector<int> cpus) {
  std::sort(cpus.begin(), cpus.end());
  return FormatCpuList(cpus);
}

// True when the gpu_worker of this build will find a GPU.
bool GpuIsPresent() {
#ifdef ISOTHERM_HAVE_CUDA
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev", error)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "nvidia") &&
        name.find_first_not_of("0123456789", 6) == std::string::npos && name.size() > 6) {
      return true;
    }
  }
#endif
  return false;
}

std::string BytesOrAuto(int64_t bytes) { return bytes < 0 ? "auto" : absl::StrCat(bytes); }

}  // namespace

FourServices MakeFourServices(const ServeOptions& options, const std::filesystem::path& model,
                              const std::filesystem::path& program_dir, const RunDir& run_dir,
                              const std::filesystem::path& plan_dir, const CorePlan& cores) {
  FourServices out;
  ServerRecord& record = out.record;
  record.pid = ::getpid();
  record.run_dir = run_dir.path().string();
  record.model = model.string();
  record.cpu_worker = run_dir.SocketAddress("cpu-worker");
  record.gpu_worker = run_dir.SocketAddress("gpu-worker");
  record.placement = run_dir.SocketAddress("placement");
  record.gateway =
      options.grpc_listen.empty() ? run_dir.SocketAddress("gateway") : options.grpc_listen;
  record.version = kVersion;

  std::vector<std::string> cpu = CommonArgs(options, record.model, record.cpu_worker);
  Add(cpu, "--socket-dir", run_dir.socket_dir().string());
  Add(cpu, "--placement", record.placement);
  Add(cpu, "--arena", options.arena);
  if (cores.empty()) {
    Add(cpu, "--threads", absl::StrCat(options.threads));
  } else {
    Add(cpu, "--threads", absl::StrCat(cores.compute.size()));
    Add(cpu, "--compute-cpus", CpuListOf(cores.compute));
  }
  AddIfSet(cpu, "--activation", options.activation);

  std::vector<std::string> gpu = CommonArgs(options, record.model, record.gpu_worker);
  Add(gpu, "--cpu-worker", record.cpu_worker);
  Add(gpu, "--placement", record.placement);
  Add(gpu, "--device", options.device);
  Add(gpu, "--transport", options.transport);
  Add(gpu, "--threads", absl::StrCat(options.threads));
  Add(gpu, "--context", absl::StrCat(options.context));
  Add(gpu, "--parallel", absl::StrCat(options.parallel));
  Add(gpu, "--vram-budget", BytesOrAuto(options.vram_budget));
  if (options.max_rows > 0) Add(gpu, "--max-rows", absl::StrCat(options.max_rows));
  Add(gpu, "--predictor-type", options.predictor_type);
  Add(gpu, "--streamed-share", absl::StrCat(options.streamed_share));
  Add(gpu, "--kv-floor", options.kv_floor);
  AddIfSet(gpu, "--activation", options.activation);
  AddIfSet(gpu, "--sparse-threshold", options.sparse_threshold);

  std::vector<std::string> placement = CommonArgs(options, record.model, record.placement);
  Add(placement, "--gpu-worker", record.gpu_worker);
  Add(placement, "--cpu-worker", record.cpu_worker);
  Add(placement, "--state-dir", plan_dir.string());
  Add(placement, "--budget", BytesOrAuto(options.vram_budget));
  Add(placement, "--follow", options.follow);
  AddIfSet(placement, "--profile", options.profile);

  std::vector<std::string> gateway = CommonArgs(options, record.model, record.gateway);
  Add(gateway, "--gpu-worker", record.gpu_worker);
  Add(gateway, "--cpu-worker", record.cpu_worker);
  Add(gateway, "--placement", record.placement);
  Add(gateway, "--parallel", absl::StrCat(options.parallel));
  Add(gateway, "--max-queue", absl::StrCat(options.max_queue));
  Add(gateway, "--drain-timeout", absl::StrCat(options.drain_timeout.count(), "ms"));
  AddIfSet(gateway, "--alias", options.alias);
  AddIfSet(gateway, "--chat-template", options.chat_template);

  for (std::vector<std::string>* args : {&cpu, &gpu, &placement, &gateway}) {
    AddIfSet(*args, "--cpus", CpuListOf(cores.others));
  }
  const auto program = [&](const char* name) { return (program_dir / name).string(); };
  out.specs.push_back({"cpu-worker", program("isotherm-cpu-worker"), std::move(cpu), false});
  out.specs.push_back({"gpu-worker", program("isotherm-gpu-worker"), std::move(gpu), false});
  out.specs.push_back({"placement", program("isotherm-placement"), std::move(placement), false});
  out.specs.push_back({"gateway", program("isotherm-gateway"), std::move(gateway), true});
  return out;
}

CorePlan CoresBesideGpu(const ServeOptions& options) {
  if (options.device == "cpu" || (options.device == "auto" && !GpuIsPresent())) return {};
  int cores = AllowedCores();
  if (options.threads > 0) cores = static_cast<int>(std::min<int64_t>(cores, options.threads + 1));
  return PlanCores(ReadCpuPlaces(AllowedCpus()), cores);
}

}  // namespace isotherm::cli
