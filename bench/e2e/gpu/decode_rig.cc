#include "bench/e2e/gpu/decode_rig.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/shm/handoff.h"
#include "common/threading/core_plan.h"
#include "common/threading/cores.h"
#include "cpu_worker/engine/model_source.h"
#include "gpu_worker/kv_page.h"
#include "gpu_worker/make_device.h"
#include "placement_service/profile/placement_profile.h"
#include "placement_service/solver/solve_placement.h"

namespace isotherm::bench {
namespace {

constexpr int64_t kEpoch = 1;
constexpr std::chrono::seconds kStepDeadline{30};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeRig>> DecodeRig::Create(const RigOptions& options) {
  std::unique_ptr<DecodeRig> rig(new DecodeRig());
  rig->options_ = options;
  rig->tokens_.seed(options.seed);
  ISOTHERM_ASSIGN_OR_RETURN(rig->model_, ModelFile::Open(options.model));
  const auto pages_each = static_cast<int32_t>(CeilDiv<int64_t>(options.context, gpu::kPageSize));
  ISOTHERM_ASSIGN_OR_RETURN(rig->device_,
                            gpu::MakeDevice(*rig->model_,
                                            {.device = options.device,
                                             .threads = options.cpu_threads,
                                             .kv_pages = pages_each * options.sequences,
                                             .max_rows = options.max_rows,
                                             .product_rows = options.product_rows,
                                             .context = options.context,
                                             .vram_budget = options.vram_budget,
                                             .stored_predictor = options.stored_predictor,
                                             .streamed_share = options.streamed_share,
                                             .early_launch = options.early_launch},
                                            {}));
  for (int32_t s = 0; s < options.sequences; ++s) {
    rig->pages_.emplace_back(static_cast<size_t>(pages_each));
    std::iota(rig->pages_.back().begin(), rig->pages_.back().end(), s * pages_each);
    rig->sampling_.emplace_back(SequenceSampling{.sequence = s, .params = {.temperature = 0}});
  }
  rig->Restart();
  ISOTHERM_RETURN_IF_ERROR(rig->Attach());
  ISOTHERM_RETURN_IF_ERROR(rig->Place());
  return rig;
}

DecodeRig::~DecodeRig() {
  if (device_ != nullptr) device_->Settle();
  mapping_.reset();
  attachment_.reset();
  cpu_worker_.reset();
  std::error_code ignored;
  if (!socket_dir_.empty()) std::filesystem::remove_all(socket_dir_, ignored);
}

absl::Status DecodeRig::Attach() {
  const int32_t shared_rows = std::min(options_.max_rows, 256);
  std::string folder = (std::filesystem::temp_directory_path() / "isotherm-bench-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) return absl::InternalError("no temporary folder");
  socket_dir_ = folder;
  // As `isotherm serve` divides the CPUs beside a GPU.
  const bool device_rings = device_->Describe().rings_by_itself;
  int cores = AllowedCores();
  if (options_.cpu_threads > 0) cores = std::min(cores, options_.cpu_threads + 1);
  const CorePlan plan = device_rings ? PlanCores(ReadCpuPlaces(AllowedCpus()), cores) : CorePlan();
  if (!plan.empty() && !BindProcess(plan.others)) return absl::InternalError("cannot bind threads");
  cpu_worker_ = std::make_unique<cpu::CpuWorker>(cpu::CpuWorker::Options{
      .socket_dir = socket_dir_,
      .num_threads = plan.empty() ? options_.cpu_threads : static_cast<int>(plan.compute.size()),
      .compute_cpus = plan.compute,
      .max_rows = shared_rows});
  ISOTHERM_ASSIGN_OR_RETURN(const cpu::BundleSource source, cpu::SourceOf(model_));
  ISOTHERM_RETURN_IF_ERROR(
      cpu_worker_->Load(source, model_->config().digest, [](double) { return true; }));
  ISOTHERM_ASSIGN_OR_RETURN(cpu::CpuWorker::Parts* const parts, cpu_worker_->parts());
  const BundleLayout& layout = model_->bundle_layout();
  ISOTHERM_ASSIGN_OR_RETURN(
      const shm::ArenaOffer offer,
      parts->attachments->Open("bench", shm::LayoutHash(gpu::ArenaShapeOf(layout)), shared_rows,
                               device_rings));
  ISOTHERM_ASSIGN_OR_RETURN(
      shm::Handoff handoff,
      shm::TakeHandoff(offer.socket_path, offer.handoff_token, std::chrono::milliseconds(2000)));
  ISOTHERM_ASSIGN_OR_RETURN(attachment_, gpu::ShmColdAttachment::Attach(
                                             std::move(handoff),
                                             {.nonce = offer.nonce,
                                              .arena_bytes = offer.arena_bytes,
                                              .control_bytes = offer.control_bytes,
                                              .arena_is_model_file = offer.arena_is_model_file},
                                             *model_));
  gpu::ColdAttachment& cold = *attachment_;
  ISOTHERM_ASSIGN_OR_RETURN(mapping_, device_->Map({.link = &cold.link(), .arena = cold.arena()}));
  return absl::OkStatus();
}

absl::Status DecodeRig::Place() {
  const BundleLayout& layout = model_->bundle_layout();
  SolveInput input;
  input.layers.assign(static_cast<size_t>(layout.num_layers),
                      {.num_neurons = layout.num_neurons, .bundle_bytes = layout.bundle_bytes});
  input.bins = {{.budget_bytes = device_->Describe().hot_capacity_bytes}};
  PlacementProfile profile;
  if (!options_.profile.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(profile, LoadPlacementProfile(options_.profile, ""));
    ISOTHERM_RETURN_IF_ERROR(CheckProfileShape(profile, layout.num_layers, layout.num_neurons));
    input.frequency = profile.frequency;
  }
  ISOTHERM_ASSIGN_OR_RETURN(plan_, SolvePlacement(input));
  plan_.epoch = kEpoch;
  plan_.model_digest = model_->config().digest;
  gpu::ColdAttachment& cold = *attachment_;
  ISOTHERM_RETURN_IF_ERROR(device_->Prepare(plan_, cold.arena(), {}));
  ISOTHERM_ASSIGN_OR_RETURN(cpu::CpuWorker::Parts* const parts, cpu_worker_->parts());
  ISOTHERM_RETURN_IF_ERROR(parts->epochs->Plan(plan_, 1).status());
  return parts->epochs->Commit(kEpoch, 1);
}

absl::StatusOr<uint64_t> DecodeRig::ReadByDevice() const {
  NeuronCounters counters;
  ISOTHERM_RETURN_IF_ERROR(device_->ReadCounters(&counters));
  uint64_t bytes = 0;
  for (const LayerCounters& layer : counters.layers) bytes += layer.cold_bytes;
  return bytes;
}

void DecodeRig::Restart() {
  positions_.assign(static_cast<size_t>(options_.sequences), 0);
  for (std::vector<TokenId>& fed : fed_) {
    fed.clear();
    for (int32_t s = 0; s < options_.sequences; ++s) fed.push_back(RandomToken());
  }
}

absl::StatusOr<StepRun> DecodeRig::Run(const std::vector<gpu::DeviceRow>& rows, bool trace,
                                       const std::vector<gpu::DeviceRow>& then, bool then_trace) {
  const auto last = static_cast<int32_t>(config().num_layers);
  const LayerRange layers{.last = last, .trace = trace};
  const LayerRange then_layers{.last = last, .trace = then_trace};
  gpu::ColdAttachment& cold = *attachment_;
  gpu::DeviceOutput output;
  const auto start = std::chrono::steady_clock::now();
  const gpu::DeviceBatch next{.step_id = step_id_ + 2,
                              .epoch = kEpoch,
                              .deadline = start + kStepDeadline,
                              .layers = std::span(&then_layers, 1),
                              .rows = then};
  ISOTHERM_RETURN_IF_ERROR(device_->RunStep({.step_id = ++step_id_,
                                             .epoch = kEpoch,
                                             .deadline = start + kStepDeadline,
                                             .layers = std::span(&layers, 1),
                                             .rows = rows,
                                             .next = then.empty() ? nullptr : &next},
                                            {.link = &cold.link(), .arena = cold.arena()},
                                            &output));
  StepRun run{
      .us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
                .count(),
      .timings = std::move(output.timings),
      .active = output.active_neurons,
      .hot = output.hot_neurons};
  return run;
}

std::vector<gpu::DeviceRow> DecodeRig::DecodeRows(int32_t sequences, int32_t ahead) const {
  std::vector<gpu::DeviceRow> rows;
  for (int32_t i = 0; i < sequences; ++i) {
    const auto s = static_cast<size_t>(i);
    rows.push_back({.token = fed_[ahead][s],
                    .position = positions_[s] + ahead,
                    .pages = pages_[s],
                    .sampling = const_cast<gpu::SamplingState*>(&sampling_[s])});
  }
  return rows;
}

absl::StatusOr<StepRun> DecodeRig::Decode(int32_t sequences, bool trace,
                                          std::optional<bool> then_trace) {
  if (positions_[0] >= options_.context)
    return absl::OutOfRangeError(absl::StrCat("the context of ", options_.context, " is full"));
  const bool ahead =
      options_.queue_ahead && then_trace.has_value() && positions_[0] + 1 < options_.context;
  ISOTHERM_ASSIGN_OR_RETURN(StepRun run,
                            Run(DecodeRows(sequences, 0), trace,
                                ahead ? DecodeRows(sequences, 1) : std::vector<gpu::DeviceRow>(),
                                then_trace.value_or(false)));
  for (size_t s = 0; s < static_cast<size_t>(sequences); ++s) {
    ++positions_[s];
    fed_[0][s] = fed_[1][s];
    fed_[1][s] = RandomToken();
  }
  return run;
}

absl::StatusOr<StepRun> DecodeRig::Prefill(int32_t tokens, bool trace) {
  StepRun total;
  for (int32_t first = 0; first < tokens; first += options_.max_rows) {
    const int32_t last = std::min(tokens, first + options_.max_rows);
    std::vector<gpu::DeviceRow> rows;
    for (int32_t p = first; p < last; ++p) {
      rows.push_back({.token = RandomToken(),
                      .position = p,
                      .pages = pages_[0],
                      .sampling = p + 1 == tokens ? &sampling_[0] : nullptr});
    }
    ISOTHERM_ASSIGN_OR_RETURN(StepRun run, Run(rows, trace));
    total.us += run.us;
    total.active += run.active;
    total.hot += run.hot;
    total.timings.insert(total.timings.end(), run.timings.begin(), run.timings.end());
  }
  positions_[0] = tokens;
  return total;
}

}  // namespace isotherm::bench
