#include "cpu_worker/server.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "common/rpc/grpc_telemetry_sink.h"
#include "common/rpc/server.h"
#include "common/telemetry/telemetry_sampler.h"
#include "common/threading/cores.h"
#include "cpu_worker/engine/cpu_worker.h"
#include "cpu_worker/engine/model_source.h"
#include "cpu_worker/service/cpu_worker_service.h"
#include "cpu_worker/service/worker_service.h"

namespace isotherm::cpu {
namespace {

absl::Status LoadModel(const CpuWorkerOptions& options, CpuWorker& worker,
                       const std::atomic<bool>& stop) {
  ISOTHERM_ASSIGN_OR_RETURN(
      std::shared_ptr<const ModelFile> model,
      ModelFile::Open(options.model, {.activation = options.activation,
                                      .sparse_threshold = options.sparse_threshold}));
  if (!model->repacked().empty()) LogInfo("{}", model->repacked());
  const std::string digest = model->config().digest;
  ISOTHERM_ASSIGN_OR_RETURN(const BundleSource source, SourceOf(std::move(model)));
  double announced = 0;
  return worker.Load(source, digest, [&](double share) {
    if (share >= announced + 0.01) {
      announced = share;
      AnnounceProgress(share);
    }
    return !stop.load();
  });
}

// Waits for the end of the step under way; the next one does without this worker, whose gpu_worker
// would otherwise bring steps for ever. True when the step was not cut.
bool Drain(CpuWorker& worker, std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  const int64_t steps_ended = worker.ledger().steps_ended();
  while (worker.ledger().InStep() && worker.ledger().steps_ended() == steps_ended) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

// Ends the server for a reason of its own. Thread-safe.
class Fault {
 public:
  explicit Fault(ShutdownSignal& shutdown) : shutdown_(shutdown) {}
  void Raise(absl::Status status) {
    {
      absl::MutexLock lock(&mu_);
      status_.Update(std::move(status));
    }
    shutdown_.Trigger();
  }
  absl::Status status() {
    absl::MutexLock lock(&mu_);
    return status_;
  }

 private:
  ShutdownSignal& shutdown_;
  absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::Status RunServer(const CpuWorkerOptions& options, ShutdownSignal& shutdown) {
  if (const std::string warning = QuotaWarning(); !warning.empty()) LogWarning("{}", warning);
  Fault fault(shutdown);
  CpuWorker worker({.socket_dir = options.socket_dir,
                    .arena = options.arena,
                    .num_threads = options.num_threads,
                    .compute_cpus = options.compute_cpus,
                    .wait = options.wait,
                    .scrub_bytes_per_second = options.scrub_bytes_per_second,
                    .on_beyond_repair = [&fault](absl::Status why) {
                      fault.Raise(WithExitCode(std::move(why), ExitCode::kInternal));
                    }});
  WorkerService worker_service(worker);
  CpuWorkerService cpu_worker_service(worker);
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<rpc::Server> server,
      rpc::Server::Start({.listen = options.listen}, {&worker_service, &cpu_worker_service}));
  AnnounceListening(server->address());

  std::atomic<bool> stop{false};
  std::unique_ptr<TelemetrySampler> sampler;  // made by the loader, used after it was joined
  std::thread loader([&] {
    ::pthread_setname_np(::pthread_self(), "load");
    const absl::Status loaded = LoadModel(options, worker, stop);
    if (!loaded.ok()) return fault.Raise(loaded);
    if (stop.load()) return;
    if (!options.placement.empty()) {
      sampler = std::make_unique<TelemetrySampler>(
          TelemetrySamplerOptions{.instance_id = worker.instance_id(),
                                  .model_digest = worker.Describe().model_digest},
          [&](NeuronCounters* counters) { return worker.ReadCounters(counters); },
          std::make_unique<rpc::GrpcTelemetrySink>(options.placement));
    }
    server->SetServing(true);
    AnnounceReady();
  });
  const int signal = shutdown.Wait();
  stop.store(true);
  loader.join();
  if (signal == 0) return fault.status();

  LogInfo("signal {}: draining", signal);
  server->SetServing(false);
  const bool clean = Drain(worker, options.drain_timeout);
  server->Shutdown(std::chrono::milliseconds(0));
  if (clean) return absl::OkStatus();
  return WithExitCode(absl::DeadlineExceededError("the drain timeout cut a step"),
                      ExitCode::kDrainCut);
}

}  // namespace isotherm::cpu
