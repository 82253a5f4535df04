// What a hand-off of one layer costs when nothing is computed: two processes, one post and its
// empty answer. The other process runs the real SlotServer; results are checked before anything is
// timed.
//
//   cmake -S . -B build -G Ninja -DISOTHERM_BUILD_BENCHMARKS=ON && ninja -C build
//   slot_handoff_benchmark
//   build/bench/slot_handoff_benchmark
//
// Arguments: how long either side spins before it sleeps (us), then what the gpu side does between
// two layers: nothing, or 100 us of work (the other side is asleep by then, as in a real step).
#include <benchmark/benchmark.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/shm/control_region.h"
#include "common/shm/slot_client.h"
#include "common/shm/slot_server.h"

namespace isotherm::shm {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// One row of the shipped model's size.
constexpr ControlShape kShape{
    .max_rows = 4, .model_dim = 576, .num_neurons = 1536, .num_layers = 30};

void Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

[[noreturn]] void ServeUntilKilled(ControlRegion& region, const WaitOptions& options) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto server = *SlotServer::Create(region, options);
  while (true) {
    auto work = server->Next(steady_clock::now() + std::chrono::seconds(1));
    if (!work.ok()) continue;
    for (int64_t i = 0; i < int64_t{work->header.num_rows} * kShape.model_dim; ++i) {
      work->partial[i] = static_cast<float>(work->header.step_id);
    }
    (void)server->Finish(*work, {.work_hash = static_cast<uint64_t>(work->header.step_id)});
  }
}

void Burn(microseconds time) {
  const auto end = steady_clock::now() + time;
  while (steady_clock::now() < end) {
  }
}

void OneLayer(SlotClient& client, int64_t step) {
  const TimePoint deadline = steady_clock::now() + std::chrono::seconds(5);
  auto buffers = client.BeginPost(1, deadline);
  if (!buffers.ok()) Fail(buffers.status());
  std::fill_n(buffers->z, kShape.model_dim, uint16_t{0x3c00});
  std::fill_n(buffers->active, client.geometry().words_per_row, ~uint64_t{0});
  buffers->row_keys[0] = 0;
  if (absl::Status status = client.Commit(
          {.step_id = step, .num_rows = 1, .cut = kShape.num_neurons, .deadline = deadline});
      !status.ok()) {
    Fail(status);
  }
  auto result = client.Wait(deadline);
  if (!result.ok()) Fail(result.status());
  if (result->work_hash != static_cast<uint64_t>(step) ||
      result->partial[kShape.model_dim - 1] != static_cast<float>(step)) {
    Fail(absl::DataLossError("a wrong result"));
  }
}

void BM_EmptyHandoff(benchmark::State& state) {
  const WaitOptions options{.spin = microseconds(state.range(0))};
  const microseconds between(state.range(1));
  auto region =
      ControlRegion::Create({.shape = kShape, .nonce = RandomNonce()}, ReadMemoryLimits());
  if (!region.ok()) Fail(region.status());
  const pid_t child = ::fork();
  if (child == 0) ServeUntilKilled(**region, options);
  const auto view = (*region)->GpuViewOfSameMapping();  // inherited by fork, so shared
  auto client = *SlotClient::Create(*view, options);
  for (int64_t step = 0; step < 1000; ++step) OneLayer(*client, step);
  std::vector<double> times_us;
  int64_t step = 0;
  for (auto _ : state) {
    Burn(between);
    const auto start = steady_clock::now();
    OneLayer(*client, ++step);
    const std::chrono::duration<double> took = steady_clock::now() - start;
    state.SetIterationTime(took.count());
    times_us.push_back(took.count() * 1e6);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  std::sort(times_us.begin(), times_us.end());
  state.counters["median_us"] = times_us[times_us.size() / 2];
  state.counters["p99_us"] = times_us[times_us.size() * 99 / 100];
}
BENCHMARK(BM_EmptyHandoff)
    ->ArgNames({"spin_us", "between_us"})
    ->ArgsProduct({{0, 5, 20, 50, 200, 1000}, {0, 100}})
    ->UseManualTime()
    ->MinTime(0.5);

}  // namespace
}  // namespace isotherm::shm

BENCHMARK_MAIN();
