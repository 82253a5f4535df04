#include "cpu_worker/engine/cold_engine.h"

#include <bit>
#include <chrono>
#include <string>
#include <utility>

#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"

namespace isotherm::cpu {
namespace {

using std::chrono::steady_clock;

StepLedger::Key KeyOf(const shm::ColdLayerHeader& header) {
  return {.step_id = header.step_id, .epoch = header.epoch, .attempt = header.attempt};
}

// A step of more rows is a prompt's: its time is arithmetic rather than reading.
constexpr int32_t kMaxTimedRows = 16;

}  // namespace

ColdEngine::ColdEngine(const Arena& arena, const EpochTables& epochs, StepLedger& ledger,
                       WorkerEvents& events, const Options& options)
    : arena_(arena),
      epochs_(epochs),
      ledger_(ledger),
      events_(events),
      options_(options),
      pool_({.num_threads = options.num_threads, .cpus = options.cpus, .name = "cold"}),
      step_keys_(static_cast<size_t>(options.max_rows)),
      counters_(arena.geometry().shape.num_layers, arena.geometry().shape.num_neurons,
                /*predicted=*/false) {}

absl::StatusOr<std::unique_ptr<ColdEngine>> ColdEngine::Create(const Arena& arena,
                                                               const EpochTables& epochs,
                                                               StepLedger& ledger,
                                                               WorkerEvents& events,
                                                               const Options& options) {
  std::unique_ptr<ColdEngine> engine(new ColdEngine(arena, epochs, ledger, events, options));
  const shm::ArenaShape& shape = arena.geometry().shape;
  absl::MutexLock lock(&engine->mu_);
  ISOTHERM_ASSIGN_OR_RETURN(engine->workspace_,
                            SparseFfnWorkspace::Create({.num_threads = engine->num_threads(),
                                                        .max_rows = options.max_rows,
                                                        .model_dim = shape.model_dim,
                                                        .num_neurons = shape.num_neurons}));
  return engine;
}

shm::ColdLayerOutcome ColdEngine::Compute(
    const ColdLayerTask& task, absl::FunctionRef<void(const shm::ColdLayerOutcome&)> done) {
  const auto start = steady_clock::now();
  const shm::ColdLayerHeader& header = task.header;
  const auto refuse = [&](shm::ColdLayerStatus status) {
    const shm::ColdLayerOutcome outcome{.status = status};
    done(outcome);
    return outcome;
  };
  if (start >= header.deadline) return refuse(shm::ColdLayerStatus::kCancelled);
  const std::shared_ptr<const EpochTable> table = epochs_.Find(header.epoch);
  if (table == nullptr) return refuse(shm::ColdLayerStatus::kStaleEpoch);
  const std::vector<uint64_t>& cold = table->cold[static_cast<size_t>(header.layer)];

  absl::MutexLock lock(&mu_);
  for (int32_t row = 0; row < header.num_rows; ++row) {
    step_keys_[static_cast<size_t>(row)] =
        StepKey(task.nonce, static_cast<uint64_t>(header.step_id),
                static_cast<uint64_t>(header.attempt), static_cast<uint64_t>(task.row_keys[row]));
  }
  const NeuronHash hash{.layer_seed = LayerSeed(static_cast<uint64_t>(header.epoch),
                                                static_cast<uint64_t>(header.layer)),
                        .row_keys = step_keys_.data()};
  const shm::ArenaGeometry& geometry = arena_.geometry();
  shm::ColdLayerOutcome outcome;
  SparseFfnParams params;
  params.bundles = {.dtype = geometry.shape.dtype,
                    .rows = geometry.shape.rows,
                    .model_dim = geometry.shape.model_dim,
                    .row_bytes = geometry.row_bytes,
                    .bundle_bytes = geometry.bundle_bytes,
                    .data = arena_.layer(header.layer),
                    .num_neurons = geometry.shape.num_neurons};
  (geometry.shape.dtype == DType::kBF16 ? params.z_bf16 : params.z_f16) = task.z;
  params.num_rows = header.num_rows;
  params.active = task.active;
  params.owned = cold.data();
  params.last_neuron = header.cut;
  params.activation = options_.rule.activation;
  params.activate_up = options_.rule.activate_up;
  if (!options_.rule.up_bias.empty()) {
    params.up_bias = options_.rule.up_bias[static_cast<size_t>(header.layer)].data();
  }
  params.partial = task.partial;
  params.hash = &hash;
  params.work_hash = &outcome.work_hash;
  params.fired = counters_.fired(header.layer);
  params.workspace = workspace_.get();
  const absl::Status status = SparseFfn(params, pool_, [&] {
    outcome.neurons = CountsOf(*params.workspace).pairs;
    outcome.compute_us =
        std::chrono::duration<float, std::micro>(steady_clock::now() - start).count();
    done(outcome);
  });
  if (!status.ok()) {
    LogError("layer {} of step {}: {}", header.layer, header.step_id,
             std::string(status.message()));
    return refuse(shm::ColdLayerStatus::kPoison);
  }
  ledger_.AddLayer(KeyOf(header), outcome.work_hash, outcome.neurons);
  const auto bytes = static_cast<uint64_t>(CountsOf(*workspace_).BytesRead(params.bundles));
  LayerCounters counts{.tokens = static_cast<uint64_t>(header.num_rows), .cold_bytes = bytes};
  if (header.num_rows <= kMaxTimedRows) {
    counts.timed_steps = 1;
    counts.cpu_ns = static_cast<uint64_t>(outcome.compute_us * 1000.0f);
    counts.timed_cold_bytes = bytes;
  }
  counters_.AddLayer(header.layer, counts);
  return outcome;
}

void ColdEngine::EndStep(const shm::ColdLayerHeader& header) {
  {
    absl::MutexLock lock(&mu_);
    counters_.AddStep(header.epoch, /*decode_rows=*/0);
  }
  events_.StepFinished(ledger_.EndStep(KeyOf(header)));
}

void ColdEngine::DropStep() { ledger_.DropRunning(); }

}  // namespace isotherm::cpu
