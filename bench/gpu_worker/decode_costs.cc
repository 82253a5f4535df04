// build/bench/decode_costs --model build/models/smollm2-relu-q8_0.gguf
//
// What three things take of a decode step: counting neurons for the placement_service and the
// completeness hash, which are always on, and a migration that runs beside it. One device of one
// thread computes each step again and again, in random order: as it is, without the counters,
// without the hash. Their samples must agree. Time is the thread's own and the quickest of several
// runs, so that other processes count little; the share is the median over steps of the difference,
// with its 95 % interval.
//
// A step computes all neurons itself, hot and cold, so both workers' counting is in it. What is
// left is the reading of the counters once a second, by a thread of its own: its time is given as a
// share of one core, for this model and for larger ones.
//
// Then neurons move, 1 % of the hot set at a time, while the device decodes: steps that a move
// overlapped are compared with those around them, by the thread's own time and, which says
// something on a quiet machine only, by the clock on the wall.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/telemetry/counter_table.h"
#include "common/telemetry/report_builder.h"
#include "gpu_worker/engine/move_pacer.h"
#include "gpu_worker/host/host_device.h"
#include "gpu_worker/host/owned_neurons.h"
#include "models/model_file.h"

namespace isotherm::gpu {
namespace {

constexpr int32_t kMaxTokens = 512;
constexpr int kWarmUpSteps = 16;
// Of each variant of a step, of which the quickest counts: what disturbs a step only ever adds.
constexpr int kRepeats = 7;

double ThreadMicros() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}

struct Estimate {
  double median = 0, low = 0, high = 0;
};

// Of the median, by order statistics.
Estimate MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  const auto at = [&](double place) {
    return values[static_cast<size_t>(std::clamp(place, 0.0, n - 1))];
  };
  const double spread = 0.98 * std::sqrt(n);
  return {at(n / 2), at(n / 2 - spread), at(n / 2 + spread)};
}

// One device and the sequence that it decodes.
class Decoder {
 public:
  static absl::StatusOr<Decoder> Create(const ModelFile& model, const PlacementPlan& plan,
                                        const OwnedNeurons& neurons, HostDeviceOptions options) {
    const BundleLayout& layout = model.bundle_layout();
    options.num_threads = 1;
    options.kv_pages = static_cast<int32_t>(CeilDiv<int64_t>(kMaxTokens, kPageSize));
    options.max_rows = 1;
    options.hot_capacity_bytes = layout.layer_bytes() * layout.num_layers;
    Decoder out;
    out.neurons_ = &neurons;
    ISOTHERM_ASSIGN_OR_RETURN(out.device_, HostDevice::Create(model, options));
    ISOTHERM_RETURN_IF_ERROR(out.device_->Prepare(plan, &neurons, {}));
    out.epoch_ = plan.epoch;
    out.pages_.resize(static_cast<size_t>(options.kv_pages));
    std::iota(out.pages_.begin(), out.pages_.end(), 0);
    return out;
  }

  // Microseconds of this thread.
  absl::StatusOr<double> Step(TokenId token, int32_t position) {
    const DeviceRow row{
        .token = token, .position = position, .pages = pages_, .sampling = sampling_.get()};
    const double start = ThreadMicros();
    ISOTHERM_RETURN_IF_ERROR(
        device_->RunStep({.step_id = ++step_id_,
                          .epoch = epoch_,
                          .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
                          .rows = std::span(&row, 1)},
                         {.arena = neurons_}, &output_));
    const double micros = ThreadMicros() - start;
    if (output_.owed_hash != output_.work_hash)
      return absl::InternalError("the step did not compute what it owed");
    return micros;
  }
  void SetEpoch(int64_t epoch) { epoch_ = epoch; }
  TokenId token() const { return output_.samples.front().token; }
  uint64_t hash() const { return output_.owed_hash; }
  HostDevice& device() { return *device_; }

 private:
  std::unique_ptr<HostDevice> device_;
  const OwnedNeurons* neurons_ = nullptr;
  std::unique_ptr<SamplingState> sampling_ =
      std::make_unique<SamplingState>(SequenceSampling{.params = {.temperature = 0}});
  std::vector<int32_t> pages_;
  int64_t epoch_ = 0, step_id_ = 0;
  DeviceOutput output_;
};

PlacementPlan EveryFifthHot(const BundleLayout& layout) {
  PlacementPlan plan{.epoch = 1, .budget_bytes = layout.layer_bytes() * layout.num_layers / 5};
  for (int64_t l = 0; l < layout.num_layers; ++l) {
    LayerPlacement layer{.num_neurons = layout.num_neurons};
    layer.hot.assign(static_cast<size_t>(CeilDiv<int64_t>(layout.num_neurons, 64)), 0);
    for (int64_t n = 0; n < layout.num_neurons; n += 5) {
      layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
      ++layer.num_hot;
    }
    plan.layers.push_back(std::move(layer));
  }
  return plan;
}

void PrintShare(const char* what, const std::vector<double>& with,
                const std::vector<double>& without) {
  std::vector<double> shares;
  for (size_t i = 0; i < with.size(); ++i) shares.push_back((with[i] - without[i]) / with[i]);
  const Estimate share = MedianOf(std::move(shares));
  std::printf("%-22s %6.2f %% of a step (95 %%: %.2f to %.2f)\n", what, 100 * share.median,
              100 * share.low, 100 * share.high);
}

// One of a hundred hot neurons of each layer goes, another one comes.
PlacementPlan MovedByOnePercent(const PlacementPlan& from, std::mt19937& random) {
  PlacementPlan plan = from;
  ++plan.epoch;
  for (LayerPlacement& layer : plan.layers) {
    const auto count = std::max<int64_t>(1, layer.num_hot / 100);
    const auto flip = [&](bool hot, int64_t number) {
      while (number > 0) {
        const auto n = static_cast<int64_t>(random()) % layer.num_neurons;
        uint64_t& word = layer.hot[static_cast<size_t>(n / 64)];
        if ((word >> (n % 64) & 1) == (hot ? 1u : 0u)) continue;
        word ^= uint64_t{1} << (n % 64);
        --number;
      }
    };
    flip(/*hot=*/false, count);
    flip(/*hot=*/true, count);
  }
  return plan;
}

// Decodes while another thread moves neurons now and then, as the worker does: copies at a rate,
// tables built, the old epoch freed after the flip.
absl::Status MeasureMoves(const PlacementPlan& plan, const OwnedNeurons& neurons, Decoder& decoder,
                          int num_steps) {
  std::atomic<int64_t> live{plan.epoch}, used{plan.epoch};
  std::atomic<int> moving{0};  // odd: a move is under way
  std::atomic<bool> done{false};
  absl::Status status;
  std::thread mover([&] {
    std::mt19937 random(5);
    PlacementPlan now = plan;
    while (!done && status.ok()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(40));
      const PlacementPlan next = MovedByOnePercent(now, random);
      MovePacer pacer(int64_t{1} << 30, Clock::Real());
      ++moving;
      status = decoder.device().Prepare(next, &neurons, [&](int64_t bytes, int64_t) {
        std::this_thread::sleep_for(pacer.Delay(bytes, /*steps_run=*/true));
      });
      ++moving;
      live = next.epoch;
      while (!done && used != next.epoch) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      if (!done && status.ok()) status = decoder.device().Retire(now.epoch);
      now = next;
    }
  });
  struct Times {
    std::vector<double> own, wall;
  };
  Times beside, alone;
  for (int step = 0; step < num_steps; ++step) {
    decoder.SetEpoch(live);
    used = live.load();
    const int before = moving;
    const auto start = std::chrono::steady_clock::now();
    const absl::StatusOr<double> micros = decoder.Step(decoder.token(), step % kMaxTokens);
    const double took =
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    if (!micros.ok()) {
      done = true;
      mover.join();
      return micros.status();
    }
    Times& times = before % 2 == 1 || moving != before ? beside : alone;
    times.own.push_back(*micros);
    times.wall.push_back(took);
  }
  done = true;
  mover.join();
  ISOTHERM_RETURN_IF_ERROR(status);
  if (beside.own.size() < 10 || alone.own.size() < 10)
    return absl::InternalError("moves and steps did not alternate; take more steps");
  const auto change = [](const std::vector<double>& with, const std::vector<double>& without) {
    return 100 * (MedianOf(with).median / MedianOf(without).median - 1);
  };
  std::printf(
      "a move of 1 %% of the hot set beside it: %+.2f %% of its own time, %+.2f %% by the "
      "clock (%zu steps, %zu without)\n",
      change(beside.own, alone.own), change(beside.wall, alone.wall), beside.own.size(),
      alone.own.size());
  return absl::OkStatus();
}

// What a second's reading and differencing of so many counters takes.
void PrintReading(const char* what, int64_t layers, int64_t neurons) {
  CounterTable table(layers, neurons, /*predicted=*/true);
  ReportBuilder builder("bench", "model");
  NeuronCounters counters;
  std::vector<double> micros;
  for (int i = 0; i < 21; ++i) {
    for (int64_t l = 0; l < layers; ++l) {
      table.AddLayer(l, {.tokens = 100, .timed_steps = 100, .gpu_ns = 1});
      for (int64_t n = i % 7; n < neurons; n += 7) {
        AddRelaxed(table.predicted(l)[n], 50);
        AddRelaxed(table.fired(l)[n], 20);
      }
    }
    table.AddStep(1, 1);
    const double start = ThreadMicros();
    table.Read(&counters);
    const TelemetryReport report = builder.Build(counters, 1'000'000);
    builder.Sent(counters);
    micros.push_back(ThreadMicros() - start);
    if (report.layers.size() != static_cast<size_t>(layers)) std::abort();
  }
  const double median = MedianOf(micros).median;
  std::printf("reading, %-13s %8.0f us a second: %.3f %% of one core\n", what, median,
              median / 1e4);
}

struct Variant {
  bool without_counts = false, without_hash = false;
};
constexpr std::array<Variant, 3> kVariants = {
    Variant{}, {.without_counts = true}, {.without_hash = true}};

// Microseconds of each variant's steps.
absl::StatusOr<std::array<std::vector<double>, 3>> MeasureVariants(Decoder& decoder,
                                                                   TokenId vocab_size,
                                                                   int num_steps) {
  std::array<std::vector<double>, 3> micros;
  std::mt19937 random(3);
  std::array<size_t, 3> order = {0, 1, 2};
  TokenId token = 1;
  for (int step = 0; step < kWarmUpSteps + num_steps; ++step) {
    const int32_t position = step % kMaxTokens;
    // Greedy text ends in loops, so that every fourth token is a random one.
    if (step % 4 == 0) {
      token = static_cast<TokenId>(random() % static_cast<uint32_t>(vocab_size));
    }
    // Once before, so that all find the step's weights where the one before left them.
    ISOTHERM_RETURN_IF_ERROR(decoder.Step(token, position).status());
    const TokenId next = decoder.token();
    std::array<double, 3> least;
    least.fill(std::numeric_limits<double>::max());
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      std::shuffle(order.begin(), order.end(), random);
      for (const size_t i : order) {
        decoder.device().LeaveOut(kVariants[i].without_counts, kVariants[i].without_hash);
        ISOTHERM_ASSIGN_OR_RETURN(const double time, decoder.Step(token, position));
        least[i] = std::min(least[i], time);
        if (decoder.token() != next) return absl::InternalError("a variant samples another token");
        if ((decoder.hash() == 0) != kVariants[i].without_hash)
          return absl::InternalError("the hash is not on where it should be, or not off");
      }
    }
    for (size_t i = 0; i < 3 && step >= kWarmUpSteps; ++i) micros[i].push_back(least[i]);
    decoder.device().LeaveOut(false, false);
    token = next;
  }
  return micros;
}

absl::Status Run(const std::string& path, int num_steps) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<ModelFile> model, ModelFile::Open(path));
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<OwnedNeurons> neurons,
                            OwnedNeurons::Load(*model));
  const PlacementPlan plan = EveryFifthHot(model->bundle_layout());
  ISOTHERM_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(*model, plan, *neurons, {}));
  const ModelConfig& config = model->config();
  ISOTHERM_ASSIGN_OR_RETURN(
      const auto micros,
      MeasureVariants(decoder, static_cast<TokenId>(config.vocab_size), num_steps));
  NeuronCounters counters;
  ISOTHERM_RETURN_IF_ERROR(decoder.device().ReadCounters(&counters));
  // The step before each measurement, and two of the three variants each time.
  const uint64_t counted = (1 + 2 * kRepeats) * static_cast<uint64_t>(kWarmUpSteps + num_steps);
  if (counters.layers[0].tokens != counted)
    return absl::InternalError("the counters are not on where they should be, or not off");
  std::printf("%s, one row, one thread, %d steps: median %.0f us a step\n", config.name.c_str(),
              num_steps, MedianOf(micros[0]).median);
  PrintShare("counting neurons", micros[0], micros[1]);
  PrintShare("completeness hash", micros[0], micros[2]);
  ISOTHERM_RETURN_IF_ERROR(MeasureMoves(plan, *neurons, decoder, num_steps));
  PrintReading("this model", config.num_layers, config.ffn_dim);
  PrintReading("7B", 32, 11'008);
  PrintReading("175B", 96, 49'152);
  return absl::OkStatus();
}

}  // namespace
}  // namespace isotherm::gpu

int main(int argc, char** argv) {
  CLI::App app("What counting neurons, the completeness hash and migrations take of a decode step.",
               "decode_costs");
  std::string model;
  int steps = 400;
  app.add_option("--model", model, "GGUF file")->required();
  app.add_option("--steps", steps, "to measure [400]")->check(CLI::Range(10, 1'000'000));
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = isotherm::gpu::Run(model, steps);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return static_cast<int>(isotherm::ExitCodeOf(status));
}
