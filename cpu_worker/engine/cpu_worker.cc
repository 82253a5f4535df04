#include "cpu_worker/engine/cpu_worker.h"

#include <hwy/targets.h>
#include <sched.h>

#include <algorithm>
#include <utility>

#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "common/process/service_process.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"

namespace isotherm::cpu {
namespace {

// Of the core that asks; the process is expected to be bound to one node.
int32_t NumaNode() {
  unsigned cpu = 0;
  unsigned node = 0;
  return ::getcpu(&cpu, &node) == 0 ? static_cast<int32_t>(node) : 0;
}

// Highway numbers better targets lower.
std::string BestIsa() {
  const int64_t targets = hwy::SupportedTargets();
  return hwy::TargetName(targets & -targets);
}

std::vector<int> Sorted(std::vector<int> cpus) {
  std::sort(cpus.begin(), cpus.end());
  return cpus;
}

}  // namespace

CpuWorker::CpuWorker(const Options& options) : options_(options), instance_id_(RandomId()) {}

CpuWorker::~CpuWorker() = default;

absl::Status CpuWorker::Load(const BundleSource& source, const std::string& model_digest,
                             const std::function<bool(double)>& progress) {
  const int threads = options_.num_threads > 0 ? options_.num_threads : DefaultThreadCount();
  parts_.source = source;
  ISOTHERM_ASSIGN_OR_RETURN(parts_.arena,
                            Arena::Load(source, {.kind = options_.arena,
                                                 .num_threads = threads,
                                                 .cpus = options_.compute_cpus,
                                                 .progress =
                                                     [&](double share) {
                                                       load_progress_.store(std::min(share, 0.99));
                                                       return !progress || progress(share);
                                                     },
                                                 .limits = shm::ReadMemoryLimits()}));
  LogInfo("{} of {}, {} of it in 2 MiB pages; {} compute threads{}",
          parts_.arena->is_model_file() ? "arena in the mapped model file" : "arena, a copy,",
          FormatBytes(parts_.arena->geometry().arena_bytes),
          FormatBytes(parts_.arena->huge_page_bytes()), threads,
          options_.compute_cpus.empty()
              ? ""
              : " on CPUs " + FormatCpuList(Sorted(options_.compute_cpus)));
  parts_.epochs =
      std::make_unique<EpochTables>(EpochTables::Model{.num_layers = source.shape.num_layers,
                                                       .num_neurons = source.shape.num_neurons,
                                                       .digest = model_digest});
  ISOTHERM_ASSIGN_OR_RETURN(parts_.engine,
                            ColdEngine::Create(*parts_.arena, *parts_.epochs, ledger_, events_,
                                               {.num_threads = threads,
                                                .cpus = options_.compute_cpus,
                                                .max_rows = options_.max_rows,
                                                .rule = source.rule}));
  if (options_.scrub_bytes_per_second > 0) {
    parts_.scrubber = std::make_unique<Scrubber>(*parts_.arena, parts_.source, events_,
                                                 options_.on_beyond_repair);
    parts_.scrubber->Start(options_.scrub_bytes_per_second);
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      parts_.attachments,
      AttachmentHost::Start(
          *parts_.arena, *parts_.engine, events_,
          {.socket_dir = options_.socket_dir, .wait = options_.wait, .watch = options_.watch}));
  model_digest_ = model_digest;
  load_progress_.store(1);
  ready_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

absl::StatusOr<CpuWorker::Parts*> CpuWorker::parts() {
  if (ready_.load(std::memory_order_acquire)) return &parts_;
  return WithErrorReason(
      absl::UnavailableError("the cpu_worker is loading its model; try again when it is ready"),
      {.reason = "MODEL_LOADING", .retry_after = std::chrono::milliseconds(1000)});
}

CpuWorker::Description CpuWorker::Describe() const {
  Description description;
  description.instance_id = instance_id_;
  description.isa = BestIsa();
  description.numa_node = NumaNode();
  description.load_progress = load_progress_.load();
  description.epochs = {kBuiltInEpoch};
  if (!ready_.load(std::memory_order_acquire)) return description;
  const shm::ArenaGeometry& geometry = parts_.arena->geometry();
  description.model_digest = model_digest_;
  description.layout_hash = shm::LayoutHash(geometry.shape);
  description.arena_bytes = geometry.arena_bytes;
  description.huge_page_bytes = parts_.arena->huge_page_bytes();
  description.num_layers = geometry.shape.num_layers;
  description.num_neurons = geometry.shape.num_neurons;
  description.bundle_bytes = geometry.bundle_bytes;
  description.bundle_rows = geometry.shape.rows;
  description.threads = parts_.engine->num_threads();
  description.epochs = parts_.epochs->Committed();
  description.committed_epoch = parts_.epochs->NewestCommitted();
  return description;
}

absl::Status CpuWorker::ReadCounters(NeuronCounters* counters) {
  ISOTHERM_ASSIGN_OR_RETURN(const Parts* loaded, parts());
  loaded->engine->ReadCounters(counters);
  return absl::OkStatus();
}

WorkerHello CpuWorker::Hello() const {
  WorkerHello hello;
  hello.instance_id = instance_id_;
  hello.epochs = {kBuiltInEpoch};
  hello.max_rows = options_.max_rows;
  if (!ready_.load(std::memory_order_acquire)) return hello;
  hello.epochs = parts_.epochs->Committed();
  hello.peer_attached = parts_.attachments->attached();
  hello.model_digest = model_digest_;
  return hello;
}

}  // namespace isotherm::cpu
