#include "gpu_worker/server.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "common/rpc/grpc_telemetry_sink.h"
#include "common/rpc/server.h"
#include "common/telemetry/telemetry_sampler.h"
#include "common/threading/cores.h"
#include "gpu_worker/engine/step_engine.h"
#include "gpu_worker/host/owned_neurons.h"
#include "gpu_worker/make_device.h"
#include "gpu_worker/service/cpu_worker_connector.h"
#include "gpu_worker/service/worker_service.h"
#include "models/model_file.h"

namespace isotherm::gpu {
namespace {

constexpr std::chrono::milliseconds kShutdownGrace{2000};
constexpr int32_t kMostRows = 4096;

// No cpu_worker: all neurons are this process's own.
class LocalAttachment final : public ColdAttachment, private ColdLink {
 public:
  explicit LocalAttachment(std::unique_ptr<OwnedNeurons> neurons) : neurons_(std::move(neurons)) {}
  ColdLink& link() override { return *this; }
  const NeuronStore* arena() const override { return neurons_.get(); }

 private:
  bool alive() const override { return false; }
  uint64_t hash_nonce() const override { return 0; }
  absl::Status Post(const ColdLayer&) override { return absl::UnavailableError("no cpu_worker"); }
  absl::StatusOr<ColdResult> Wait(TimePoint) override {
    return absl::UnavailableError("no cpu_worker");
  }
  absl::Status EndOfStep(int64_t, int64_t, int32_t, TimePoint) override { return absl::OkStatus(); }
  const std::unique_ptr<OwnedNeurons> neurons_;
};

struct KvShape {
  int64_t context = 0;
  int32_t pages = 0;
  int64_t page_bytes = 0;
};

// Hot neurons keep at least half of what they have when no page is lent.
std::optional<KvLeaseOptions> LeaseOf(const GpuWorkerOptions& options, const KvShape& kv,
                                      const DeviceInfo& info) {
  if (options.kv_floor < 0) return std::nullopt;
  if (!info.shares_memory) {
    LogWarning("--kv-floor: KV pages are fixed on the device {}", info.name);
    return std::nullopt;
  }
  // One sequence of the whole context always fits.
  const auto floor = static_cast<int32_t>(std::clamp<int64_t>(
      options.kv_floor / kv.page_bytes, CeilDiv<int64_t>(kv.context, kPageSize), kv.pages));
  return KvLeaseOptions{.budget_bytes = info.hot_capacity_bytes + floor * kv.page_bytes,
                        .page_bytes = kv.page_bytes,
                        .floor_pages = floor,
                        .most_pages = kv.pages,
                        .hot_floor_bytes = info.hot_capacity_bytes / 2,
                        .hold = options.kv_hold};
}

absl::StatusOr<KvShape> ChooseKv(const GpuWorkerOptions& options, const ModelConfig& config) {
  const int64_t page_bytes =
      int64_t{4} * config.num_layers * kPageSize * config.num_kv_heads * config.head_dim;
  const int64_t affordable = std::max<int64_t>(1, options.kv_bytes / page_bytes);
  KvShape shape{.page_bytes = page_bytes};
  shape.context = options.context > 0 ? options.context : config.context_length;
  if (shape.context > config.context_length) {
    return WithExitCode(
        absl::InvalidArgumentError(absl::StrCat("--context ", options.context,
                                                " is above the model's ", config.context_length)),
        ExitCode::kUsage);
  }
  const int64_t pages_each = CeilDiv<int64_t>(shape.context, kPageSize);
  if (pages_each > affordable) {
    if (options.context > 0) {
      return WithExitCode(
          absl::ResourceExhaustedError(absl::StrCat(
              "a context of ", options.context, " tokens needs ",
              FormatBytes(pages_each * page_bytes), " of KV, --kv-bytes allows ",
              FormatBytes(options.kv_bytes), ": try --context ", affordable * kPageSize)),
          ExitCode::kCannotFit);
    }
    shape.context = affordable * kPageSize;
  }
  shape.pages = static_cast<int32_t>(std::min<int64_t>(
      affordable,
      CeilDiv<int64_t>(shape.context, kPageSize) * std::max<int64_t>(1, options.parallel)));
  return shape;
}

void LogMemory(const DeviceMemoryUse& use) {
  if (use.process == 0) return;
  LogInfo(
      "device memory {}: context {}, dense {}, head {}, predictor {}, KV {}, workspace {}, tables "
      "{}, hot pool {}",
      FormatBytes(use.process), FormatBytes(use.context), FormatBytes(use.dense),
      FormatBytes(use.head), FormatBytes(use.predictor), FormatBytes(use.kv),
      FormatBytes(use.workspace), FormatBytes(use.tables), FormatBytes(use.hot_pool));
}

}  // namespace

absl::Status Validate(const GpuWorkerOptions& options) {
  const auto bad = [](absl::string_view what) {
    return WithExitCode(absl::InvalidArgumentError(what), ExitCode::kUsage);
  };
  if (options.model.empty()) return bad("--model is missing; give a GGUF file");
  if (options.listen.empty())
    return bad("--listen is missing; give unix:/path.sock or 127.0.0.1:8101");
  if (options.device != "auto" && options.device != "cuda" && options.device != "cpu") {
    return bad(absl::StrCat("--device ", options.device, "; choose auto, cuda or cpu"));
  }
  if (options.transport != "shm" && options.transport != "grpc") {
    return bad(absl::StrCat("--transport ", options.transport, "; choose shm or grpc"));
  }
  if (options.max_rows < 1 || options.max_rows > kMostRows)
    return bad(absl::StrCat("--max-rows is not within 1 to ", kMostRows));
  if (options.parallel < 1 || options.parallel > 1024)
    return bad("--parallel is not within 1 to 1024");
  if (options.threads < 0 || options.threads > 1024)
    return bad("--threads is not within 0 to 1024");
  if (options.move_rate < 0) return bad("--move-rate is negative; 0 is no limit");
  return absl::OkStatus();
}

absl::Status RunGpuWorker(const GpuWorkerOptions& options, ShutdownSignal& shutdown) {
  const std::string instance_id = RandomId();
  WorkerService service(instance_id);
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                            rpc::Server::Start({.listen = options.listen}, {&service}));
  AnnounceListening(server->address());

  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<ModelFile> model,
                            ModelFile::Open(options.model, options.model_options));
  const ModelConfig& config = model->config();
  if (!model->repacked().empty()) LogInfo("{}", model->repacked());
  ISOTHERM_ASSIGN_OR_RETURN(const KvShape kv, ChooseKv(options, config));
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<Device> device,
      MakeDevice(*model,
                 {.device = options.device,
                  .threads = options.threads > 0 ? options.threads : AllowedCores(),
                  .kv_pages = kv.pages,
                  .max_rows = options.max_rows,
                  .context = kv.context,
                  .vram_budget = options.vram_budget,
                  .stored_predictor = options.stored_predictor,
                  .streamed_share = options.streamed_share,
                  .poison_freed = options.poison_freed,
                  .remote_cold_side = !options.cpu_worker.empty() && options.transport == "grpc"},
                 [&](double share) {
                   service.SetProgress(share);
                   AnnounceProgress(share);
                 }));
  if (options.wrap_device) device = options.wrap_device(std::move(device));
  // Only now: loading takes every core, and a device made of CPU threads goes on doing so.
  if (device->Describe().rings_by_itself) ISOTHERM_RETURN_IF_ERROR(ConfineProcess(options.cpus));
  std::atomic<bool> device_lost = false;
  StepEngine engine(*device, {.instance_id = instance_id,
                              .model_digest = config.digest,
                              .context_length = kv.context,
                              .kv_lease = LeaseOf(options, kv, device->Describe()),
                              .move_bytes_per_second = options.move_rate,
                              .on_device_lost = [&] {
                                device_lost = true;
                                shutdown.Trigger();
                              }});
  std::unique_ptr<CpuWorkerConnector> connector;
  if (options.cpu_worker.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<OwnedNeurons> neurons, OwnedNeurons::Load(*model));
    ISOTHERM_RETURN_IF_ERROR(engine.SetCold(std::make_shared<LocalAttachment>(std::move(neurons))));
  } else {
    connector = std::make_unique<CpuWorkerConnector>(
        CpuWorkerConnector::Options{
            .address = options.cpu_worker,
            .transport = options.transport == "grpc" ? ColdTransport::kGrpc : ColdTransport::kShm,
            .instance_id = instance_id,
            .max_rows = device->Describe().max_rows,
            .device_rings = device->Describe().rings_by_itself},
        *model, engine);
  }
  service.SetBackend({.model = model.get(),
                      .device = device.get(),
                      .engine = &engine,
                      .instance_id = instance_id});
  std::unique_ptr<TelemetrySampler> sampler;
  if (!options.placement.empty()) {
    sampler = std::make_unique<TelemetrySampler>(
        TelemetrySamplerOptions{.instance_id = instance_id, .model_digest = config.digest},
        [&](NeuronCounters* counters) { return device->ReadCounters(counters); },
        std::make_unique<rpc::GrpcTelemetrySink>(options.placement));
  }
  server->SetServing(true);
  AnnounceReady();
  const DeviceInfo info = device->Describe();
  LogInfo("serving {} on {} ({}): context {}, {} KV pages, hot pool {}", config.name, info.name,
          info.isa, kv.context, kv.pages, FormatBytes(info.hot_capacity_bytes));
  LogMemory(info.memory);

  shutdown.Wait();
  if (device_lost) {
    // Nothing works in this process any more, not even an orderly end: a new one has to start.
    Log(LogLevel::kCritical, "the GPU reported an error that ends this process");
    server->SetServing(false);
    std::_Exit(static_cast<int>(ExitCode::kInternal));
  }
  server->Shutdown(kShutdownGrace);
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
