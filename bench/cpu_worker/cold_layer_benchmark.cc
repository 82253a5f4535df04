// build/bench/cold_layer_benchmark --compute-cpus 1-14 --own-cpu 0 --percent 12
// What a layer's cold neurons cost from the post to the answer, and how much of that is not in the
// time that the engine says it took: what lies between the two sides, without the way over PCIe. A
// thread plays a GPU that rings by itself: it posts a layer of one row, spins until the answer is
// there, and lets as long pass as attention takes. Layers are walked in turn, so that their weights
// come from memory. The first answer of each layer is checked. One JSON line a figure.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/probe/line.h"
#include "common/shm/control_region.h"
#include "common/shm/slot_client.h"
#include "common/shm/slot_server.h"
#include "common/tensor/half.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"
#include "common/threading/futex.h"
#include "cpu_worker/engine/cold_engine.h"

namespace isotherm::cpu {
namespace {

using probe::Line;
using std::chrono::steady_clock;
using threading_internal::CpuRelax;

struct Flags {
  int64_t dim = 4096, neurons = 11008, layers = 8;
  double percent = 6;
  int threads = 0, between_us = 70, steps = 60;
  std::string compute_cpus;
  int own_cpu = -1;
};

// Weights from a table of small positive numbers, so that every gate is open.
BundleSource RandomSource(const Flags& flags) {
  auto table = std::make_shared<std::vector<uint16_t>>(size_t{1} << 20);
  std::mt19937 random(1);
  for (uint16_t& half : *table) half = F32ToF16(static_cast<float>(random() % 1024) / 65536.0f);
  BundleSource source;
  source.shape = {.dtype = DType::kF16,
                  .rows = 3,
                  .model_dim = flags.dim,
                  .num_neurons = flags.neurons,
                  .num_layers = flags.layers};
  source.pack = [table, flags](int64_t layer, int64_t first, int64_t count, std::byte* out) {
    const auto halves = static_cast<size_t>(3 * flags.dim);
    for (int64_t n = first; n < first + count; ++n, out += 2 * halves) {
      const auto from = static_cast<size_t>((n * 7919 + layer * 104729) % 500000);
      std::memcpy(out, table->data() + from, 2 * halves);
    }
    return absl::OkStatus();
  };
  return source;
}

std::vector<uint64_t> ActiveSet(const Flags& flags, std::mt19937& random) {
  std::vector<uint64_t> bits(static_cast<size_t>((flags.neurons + 63) / 64));
  std::uniform_real_distribution<double> uniform(0, 100);
  for (int64_t n = 0; n < flags.neurons; ++n) {
    if (uniform(random) < flags.percent) bits[static_cast<size_t>(n / 64)] |= uint64_t{1} << n % 64;
  }
  return bits;
}

// Column `column` of a layer's answer to z of ones, in plain loops.
double Reference(const Arena& arena, const Flags& flags, int64_t layer,
                 const std::vector<uint64_t>& active, int64_t column) {
  double sum = 0;
  for (int64_t n = 0; n < flags.neurons; ++n) {
    if ((active[static_cast<size_t>(n / 64)] >> n % 64 & 1) == 0) continue;
    const auto* const row =
        reinterpret_cast<const uint16_t*>(arena.layer(layer) + n * arena.geometry().bundle_bytes);
    double gate = 0, up = 0;
    for (int64_t c = 0; c < flags.dim; ++c) {
      gate += static_cast<double>(F16ToF32(row[c]));
      up += static_cast<double>(F16ToF32(row[flags.dim + c]));
    }
    sum += gate * up * static_cast<double>(F16ToF32(row[2 * flags.dim + column]));
  }
  return sum;
}

absl::Status Serve(shm::SlotServer& server, ColdEngine& engine) {
  while (true) {
    const absl::StatusOr<shm::ColdLayerWork> work =
        server.Next(steady_clock::now() + std::chrono::seconds(1));
    if (absl::IsUnavailable(work.status())) return absl::OkStatus();
    if (absl::IsDeadlineExceeded(work.status())) continue;
    if (!work.ok()) return work.status();
    absl::Status finished;
    engine.Compute(ColdLayerTask::Of(*work, server.hash_nonce()),
                   [&](const shm::ColdLayerOutcome& out) { finished = server.Finish(*work, out); });
    if (!finished.ok()) return finished;
  }
}

void Report(const char* figure, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const auto at = [&](double share) {
    return us[static_cast<size_t>(share * static_cast<double>(us.size() - 1))];
  };
  Line(figure).Set("p10_us", at(0.1)).Set("p50_us", at(0.5)).Set("p90_us", at(0.9));
}

absl::Status Run(const Flags& flags) {
  std::vector<int> cpus;
  if (!flags.compute_cpus.empty()) {
    const auto parsed = ParseCpuList(flags.compute_cpus);
    if (!parsed.has_value()) return absl::InvalidArgumentError("--compute-cpus; want such as 1-14");
    cpus = *parsed;
  }
  auto arena =
      Arena::Load(RandomSource(flags), {.num_threads = 2, .limits = shm::ReadMemoryLimits()});
  if (!arena.ok()) return arena.status();
  const EpochTables epochs(
      {.num_layers = flags.layers, .num_neurons = flags.neurons, .digest = "bench"});
  StepLedger ledger;
  WorkerEvents events;
  auto engine = ColdEngine::Create(
      **arena, epochs, ledger, events,
      {.num_threads = cpus.empty() ? flags.threads : static_cast<int>(cpus.size()),
       .cpus = cpus,
       .max_rows = 1});
  if (!engine.ok()) return engine.status();
  auto region =
      shm::ControlRegion::Create({.shape = {.max_rows = 1,
                                            .model_dim = static_cast<int32_t>(flags.dim),
                                            .num_neurons = static_cast<int32_t>(flags.neurons),
                                            .num_layers = static_cast<int32_t>(flags.layers)},
                                  .nonce = shm::RandomNonce()},
                                 shm::ReadMemoryLimits());
  if (!region.ok()) return region.status();
  auto server = shm::SlotServer::Create(**region, {}, /*device_rings=*/true);
  if (!server.ok()) return server.status();
  const auto view = (*region)->GpuViewOfSameMapping();
  auto client = shm::SlotClient::Create(*view, {.spin = std::chrono::seconds(5)});
  if (!client.ok()) return client.status();
  (*engine)->SetSpin(shm::WaitOptions().device_spin);
  absl::Status served;
  std::thread thread([&] {
    (*engine)->BindCaller();
    served = Serve(**server, **engine);
  });
  if (flags.own_cpu >= 0) BindThisThread({flags.own_cpu});

  std::mt19937 random(2);
  std::vector<double> total, compute, between;
  double bytes = 0;
  absl::Status status;
  for (int64_t step = 0; step < flags.steps && status.ok(); ++step) {
    for (int64_t layer = 0; layer < flags.layers && status.ok(); ++layer) {
      const std::vector<uint64_t> active = ActiveSet(flags, random);
      const shm::TimePoint deadline = steady_clock::now() + std::chrono::seconds(5);
      auto buffers = (*client)->BeginPost(1, deadline);
      if (!buffers.ok()) {
        status = buffers.status();
        break;
      }
      std::fill_n(buffers->z, flags.dim, uint16_t{0x3c00});
      std::copy(active.begin(), active.end(), buffers->active);
      buffers->row_keys[0] = 0;
      const auto begin = steady_clock::now() + std::chrono::microseconds(flags.between_us);
      while (steady_clock::now() < begin) {
      }
      const uint64_t sequence = (*client)->next_sequence();
      const std::atomic<uint64_t>& answered = view->result(sequence).sequence;
      const auto start = steady_clock::now();
      status = (*client)->Commit({.step_id = step,
                                  .epoch = kBuiltInEpoch,
                                  .layer = static_cast<int32_t>(layer),
                                  .num_rows = 1,
                                  .cut = static_cast<int32_t>(flags.neurons),
                                  .deadline = deadline});
      if (!status.ok()) break;
      while (answered.load(std::memory_order_acquire) != sequence) CpuRelax();
      const std::chrono::duration<double, std::micro> took = steady_clock::now() - start;
      const auto result = (*client)->Wait(deadline);
      if (!result.ok()) {
        status = result.status();
        break;
      }
      if (step == 0) {
        const double want = Reference(**arena, flags, layer, active, flags.dim / 3);
        const auto got = static_cast<double>(result->partial[flags.dim / 3]);
        if (std::abs(got - want) > 1e-4 * std::abs(want)) {
          status = absl::DataLossError("a wrong sum: got " + std::to_string(got) + ", want " +
                                       std::to_string(want));
        }
        continue;
      }
      total.push_back(took.count());
      compute.push_back(static_cast<double>(result->compute_us));
      between.push_back(took.count() - static_cast<double>(result->compute_us));
      int64_t count = 0;
      for (const uint64_t word : active) count += std::popcount(word);
      bytes += static_cast<double>(count * (*arena)->geometry().bundle_bytes);
    }
  }
  (*client)->Abort();
  thread.join();
  if (!status.ok()) return status;
  if (!served.ok()) return served;
  double sum = 0;
  for (const double us : compute) sum += us;
  Line("layer")
      .Set("threads", (*engine)->num_threads())
      .Set("percent", flags.percent)
      .Set("mb", bytes * 1e-6 / static_cast<double>(total.size()))
      .Set("gb_s", bytes * 1e-3 / sum);
  Report("post_to_answer", total);
  Report("compute", compute);
  Report("hand_off", between);
  return absl::OkStatus();
}

}  // namespace
}  // namespace isotherm::cpu

int main(int argc, char** argv) {
  isotherm::cpu::Flags flags;
  CLI::App app{"Times a layer's cold neurons from a post to its answer, as JSON lines."};
  app.add_option("--dim", flags.dim)->capture_default_str();
  app.add_option("--neurons", flags.neurons, "of a layer")->capture_default_str();
  app.add_option("--layers", flags.layers)->capture_default_str();
  app.add_option("--percent", flags.percent, "active neurons")->capture_default_str();
  app.add_option("--threads", flags.threads, "default: all CPUs but one");
  app.add_option("--compute-cpus", flags.compute_cpus, "that threads are bound to, such as 1-14");
  app.add_option("--own-cpu", flags.own_cpu, "of the thread that plays the GPU");
  app.add_option("--between-us", flags.between_us, "between two layers")->capture_default_str();
  app.add_option("--steps", flags.steps)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = isotherm::cpu::Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "cold_layer_benchmark: %s\n", std::string(status.message()).c_str());
  return 1;
}
