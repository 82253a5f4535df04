// build/bench/sparse_ffn_benchmark --geometry 7b --dtype f16 --percent 3,12 --threads 15
// build/bench/sparse_ffn_benchmark --sweep --out sweep.jsonl
// The cold kernel on a model's layers in a sealed memfd: fresh bundles and a fresh active set each
// call. Every result is checked before it is timed. One JSON object a line, appended at once. GB/s
// counts the rows that had to be read; `share` is of the linear read of the same memory by the same
// threads, measured just before and just after.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/common/kernels/cold_layers.h"
#include "bench/probe/line.h"
#include "bench/probe/read_loops.h"
#include "common/kernels/work_hash.h"
#include "common/threading/cores.h"

namespace isotherm {
namespace {

using probe::Line;
using std::chrono::steady_clock;

const std::map<std::string, ColdLayers::Shape>& Shapes() {
  static const auto* const shapes = new std::map<std::string, ColdLayers::Shape>{
      {"small", {"small", 576, 1536, 3}},
      {"7b", {"7b", 4096, 11008, 3}},
      {"13b", {"13b", 5120, 13824, 3}},
      {"falcon", {"falcon", 8192, 32768, 2}},
  };
  return *shapes;
}

const std::map<std::string, DType>& Types() {
  static const auto* const types = new std::map<std::string, DType>{
      {"f16", DType::kF16}, {"bf16", DType::kBF16}, {"q8_0", DType::kQ8_0}, {"q4_0", DType::kQ4_0}};
  return *types;
}

const std::map<std::string, FetchInto>& Fetches() {
  static const auto* const fetches =
      new std::map<std::string, FetchInto>{{"none", FetchInto::kNone},
                                           {"l1", FetchInto::kL1},
                                           {"l2", FetchInto::kL2},
                                           {"nta", FetchInto::kNonTemporal}};
  return *fetches;
}

std::string NameOf(FetchInto fetch) {
  for (const auto& [name, value] : Fetches()) {
    if (value == fetch) return name;
  }
  return "?";
}

struct Flags {
  std::vector<std::string> geometries{"7b", "falcon"};
  std::vector<std::string> types{"f16"};
  std::vector<double> percents{3, 12};
  std::vector<int> threads;
  int all_threads = 1;
  std::vector<int64_t> rows{1};
  std::vector<std::string> pages{"4k"};
  double gib = 3;
  double seconds = 0.25;
  double open_percent = 100;
  bool hash = true;
  bool sweep = false;
  SparseFfnTuning tuning;
};

std::unique_ptr<ThreadPool> MakePool(int threads) {
  // Long enough that nobody sleeps between two calls.
  static const std::vector<int> cpus = AllowedCpus();  // before the caller is bound
  auto pool =
      std::make_unique<ThreadPool>(ThreadPoolOptions{.num_threads = threads,
                                                     .cpus = cpus,
                                                     .spin = std::chrono::microseconds(5000),
                                                     .name = "bench"});
  pool->BindCaller();
  return pool;
}

// Bytes a second that the pool reads linearly of `memory`: the best of four passes, half of them
// with software prefetch.
double LinearRead(const probe::TestMemory& memory, ThreadPool& pool) {
  constexpr int64_t kPiece = (int64_t{1} << 20) / 8;
  const int64_t words = std::min<int64_t>(memory.bytes(), int64_t{2} << 30) / 8 / kPiece * kPiece;
  double best = 0;
  for (int pass = 0; pass < 4; ++pass) {
    std::atomic<int64_t> cursor{0};
    std::atomic<uint64_t> total{0};
    const auto start = steady_clock::now();
    pool.RunElastic([&](int) {
      uint64_t sum = 0;
      for (int64_t i; (i = cursor.fetch_add(kPiece)) < words;) {
        sum += probe::SumWords(memory.data() + i, kPiece,
                               pass % 2 == 0 ? probe::Fetch::kL2 : probe::Fetch::kNone);
      }
      total += sum;
    });
    const std::chrono::duration<double> taken = steady_clock::now() - start;
    best = std::max(best, static_cast<double>(words) * 8 / taken.count());
  }
  return best;
}

struct Figure {
  double us = 0;  // median of a call
  double us_p99 = 0;
  double bytes = 0;  // of a call, mean
  bool right = false;
  double gb_s() const { return us > 0 ? bytes / us / 1e3 : 0; }
};

// One layer shape's calls: memory, sets and scratch.
class Bench {
 public:
  Bench(const Flags& flags, const ColdLayers::Shape& shape, DType dtype, bool huge_pages)
      : flags_(flags), shape_(shape) {
    const auto pool = MakePool(flags.all_threads);
    layers_ = std::make_unique<ColdLayers>(
        ColdLayers::Options{.shape = shape,
                            .dtype = dtype,
                            .bytes = static_cast<int64_t>(flags.gib * (int64_t{1} << 30)),
                            .huge_pages = huge_pages,
                            .open_share = flags.open_percent / 100,
                            .max_rows = *std::max_element(flags.rows.begin(), flags.rows.end())},
        *pool);
  }

  const ColdLayers& layers() const { return *layers_; }
  void UseThreads(int threads) {
    if (pool_ == nullptr || pool_->num_threads() != threads) pool_ = MakePool(threads);
  }
  ThreadPool& pool() { return *pool_; }

  Figure Run(int64_t rows, double percent, const SparseFfnTuning& tuning) {
    Figure figure;
    auto workspace = SparseFfnWorkspace::Create({.num_threads = pool_->num_threads(),
                                                 .max_rows = rows,
                                                 .model_dim = shape_.model_dim,
                                                 .num_neurons = shape_.num_neurons});
    if (!workspace.ok() || !(*workspace)->SetTuning(tuning).ok()) return figure;
    constexpr int kSets = 16;
    std::vector<std::vector<uint64_t>> sets;
    for (uint32_t i = 0; i < kSets; ++i) {
      sets.push_back(layers_->ActiveSet(rows, percent / 100, i));
      figure.bytes += layers_->BytesToRead(sets.back(), rows) / kSets;
    }
    std::vector<uint64_t> keys;
    for (int64_t r = 0; r < rows; ++r) keys.push_back(StepKey(1, 2, 3, static_cast<uint64_t>(r)));
    const NeuronHash hash{LayerSeed(1, 2), keys.data()};
    uint64_t work_hash = 0;
    AlignedFloats partial(rows * shape_.model_dim);
    SparseFfnParams p{.num_rows = rows, .partial = partial.get(), .workspace = workspace->get()};
    if (flags_.hash) {
      p.hash = &hash;
      p.work_hash = &work_hash;
    }
    const auto call = [&](int64_t i) {
      layers_->Aim(i, p);
      p.active = sets[static_cast<size_t>(i % kSets)].data();
      return SparseFfn(p, *pool_).ok();
    };
    figure.right = call(0) && layers_->ResultIsRight(p);
    if (!figure.right) return figure;
    std::vector<double> times;
    const auto end = steady_clock::now() + std::chrono::duration<double>(flags_.seconds);
    for (int64_t i = 1; times.size() < 16 || steady_clock::now() < end; ++i) {
      const auto start = steady_clock::now();
      call(i);
      times.push_back(
          std::chrono::duration<double, std::micro>(steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    figure.us = times[times.size() / 2];
    figure.us_p99 = times[times.size() * 99 / 100];
    return figure;
  }

 private:
  const Flags& flags_;
  const ColdLayers::Shape shape_;
  std::unique_ptr<ColdLayers> layers_;
  std::unique_ptr<ThreadPool> pool_;
};

void Describe(Line& line, const SparseFfnTuning& tuning) {
  line.Set("pass", tuning.pass).Set("phase", tuning.phase).Set("chunk", tuning.chunk);
  line.Set("tail", tuning.tail).Set("fetch", NameOf(tuning.fetch));
  line.Set("fetch_lines", tuning.fetch_lines).Set("stream_pairs", tuning.stream_pairs);
}

void Report(Line& line, const Figure& figure, double read) {
  if (!figure.right) {
    line.Set("error", "wrong result");
    return;
  }
  line.Set("us", figure.us).Set("us_p99", figure.us_p99).Set("mb", figure.bytes / 1e6);
  line.Set("gb_s", figure.gb_s()).Set("linear_gb_s", read / 1e9);
  line.Set("share", figure.gb_s() * 1e9 / read);
}

// Coordinate descent: each knob in turn, the best value kept, by the sum of times over the
// activities asked for. Prints every point.
void Sweep(Bench& bench, const Flags& flags, const std::function<void(Line&)>& name) {
  SparseFfnTuning best = flags.tuning;
  const auto cost = [&](const SparseFfnTuning& tuning, const char* knob) {
    double us = 0;
    for (const double percent : flags.percents) {
      const Figure figure = bench.Run(1, percent, tuning);
      Line line("sweep");
      name(line);
      line.Set("knob", knob).Set("percent", percent);
      Describe(line, tuning);
      line.Set("us", figure.us).Set("gb_s", figure.gb_s());
      if (!figure.right) line.Set("error", "wrong result");
      us += figure.right ? figure.us * 1e3 / figure.bytes : 1e9;
    }
    return us;
  };
  double best_cost = cost(best, "start");
  const auto attempt = [&](const char* knob, const SparseFfnTuning& tuning) {
    const double now = cost(tuning, knob);
    if (now < best_cost) {
      best_cost = now;
      best = tuning;
    }
  };
  const auto attempt_each = [&](const char* knob, int SparseFfnTuning::*field,
                                const std::vector<int>& values) {
    for (const int value : values) {
      SparseFfnTuning tuning = best;
      if (tuning.*field == value) continue;
      tuning.*field = value;
      attempt(knob, tuning);
    }
  };
  for (int round = 0; round < 2; ++round) {
    for (const auto& [pass, phase] : std::vector<std::pair<int, int>>{
             {1, 1}, {1, 8}, {2, 2}, {2, 4}, {2, 8}, {4, 4}, {4, 8}, {4, 16}}) {
      SparseFfnTuning tuning = best;
      if (tuning.pass == pass && tuning.phase == phase) continue;
      tuning.pass = pass;
      tuning.phase = phase;
      tuning.chunk = std::max(tuning.chunk, phase);
      attempt("pass, phase", tuning);
    }
    for (const FetchInto fetch :
         {FetchInto::kNone, FetchInto::kL1, FetchInto::kL2, FetchInto::kNonTemporal}) {
      SparseFfnTuning tuning = best;
      if (tuning.fetch == fetch) continue;
      tuning.fetch = fetch;
      attempt("fetch", tuning);
    }
    attempt_each("fetch_lines", &SparseFfnTuning::fetch_lines, {1, 2, 4, 8, 16, 32, 64});
    attempt_each("chunk", &SparseFfnTuning::chunk, {4, 8, 16});
    attempt_each("tail", &SparseFfnTuning::tail, {1, 2, 4});
  }
  for (const double percent : flags.percents) {
    const double before = LinearRead(bench.layers().memory(), bench.pool());
    const Figure figure = bench.Run(1, percent, best);
    const double read = std::max(before, LinearRead(bench.layers().memory(), bench.pool()));
    Line line("best");
    name(line);
    line.Set("percent", percent);
    Describe(line, best);
    Report(line, figure, read);
  }
}

void RunOne(const Flags& flags, const ColdLayers::Shape& shape, const std::string& type,
            const std::string& pages) {
  Bench bench(flags, shape, Types().at(type), pages == "2m");
  const auto name = [&](Line& line, int threads) {
    line.Set("geometry", shape.name).Set("dtype", type).Set("pages", pages);
    line.Set("threads", threads);
  };
  if (!bench.layers().error().empty()) {
    Line line("cold_kernel");
    name(line, 0);
    line.Set("error", bench.layers().error());
    return;
  }
  {
    Line line("memory");
    name(line, 0);
    line.Set("bytes", bench.layers().memory().bytes());
    line.Set("shmem_pmd_mapped", bench.layers().memory().huge_bytes().shmem_mapped);
    line.Set("layers", bench.layers().num_layers());
    line.Set("bundle_bytes", bench.layers().bundle_bytes());
  }
  for (const int threads : flags.threads) {
    bench.UseThreads(threads);
    if (flags.sweep) {
      Sweep(bench, flags, [&](Line& line) { name(line, threads); });
      continue;
    }
    // What a call costs beside reading: nothing active, and one neuron a thread.
    for (const double percent : {0.0, 100.0 * threads / static_cast<double>(shape.num_neurons)}) {
      const Figure figure = bench.Run(1, percent, flags.tuning);
      Line line("overhead");
      name(line, threads);
      line.Set("percent", percent).Set("us", figure.us).Set("us_p99", figure.us_p99);
      if (!figure.right) line.Set("error", "wrong result");
    }
    for (const int64_t rows : flags.rows) {
      for (const double percent : flags.percents) {
        const double before = LinearRead(bench.layers().memory(), bench.pool());
        const Figure figure = bench.Run(rows, percent, flags.tuning);
        const double read = std::max(before, LinearRead(bench.layers().memory(), bench.pool()));
        Line line("cold_kernel");
        name(line, threads);
        line.Set("percent", percent).Set("rows", rows).Set("open_percent", flags.open_percent);
        line.Set("hash", flags.hash);
        Describe(line, flags.tuning);
        Report(line, figure, read);
      }
    }
  }
}

template <typename T>
CLI::IsMember OneOf(const std::map<std::string, T>& names) {
  std::vector<std::string> list;
  list.reserve(names.size());
  for (const auto& [name, value] : names) list.push_back(name);
  return CLI::IsMember(list);
}

}  // namespace
}  // namespace isotherm

int main(int argc, char** argv) {
  using namespace isotherm;  // NOLINT
  Flags flags;
  std::string out = "-", fetch = "l2";
  CLI::App app("Times the cold kernel, as JSON lines.");
  app.add_option("--geometry", flags.geometries, "small, 7b, 13b, falcon")
      ->delimiter(',')
      ->check(OneOf(Shapes()));
  app.add_option("--dtype", flags.types, "f16, bf16, q8_0, q4_0")
      ->delimiter(',')
      ->check(OneOf(Types()));
  app.add_option("--percent", flags.percents, "active neurons")->delimiter(',');
  app.add_option("--threads", flags.threads, "default: all but one")->delimiter(',');
  app.add_option("--rows", flags.rows, "rows of a batch, each its own active set")->delimiter(',');
  app.add_option("--pages", flags.pages, "4k, 2m")
      ->delimiter(',')
      ->check(CLI::IsMember({"4k", "2m"}));
  app.add_option("--gib", flags.gib, "memory to walk; several times the L3")->capture_default_str();
  app.add_option("--seconds", flags.seconds, "of each figure")->capture_default_str();
  app.add_option("--open-percent", flags.open_percent, "neurons whose gate is open")
      ->capture_default_str();
  app.add_flag("--hash,!--no-hash", flags.hash, "count the work");
  app.add_flag("--sweep", flags.sweep, "try the knobs below instead of taking them");
  app.add_option("--pass", flags.tuning.pass)->capture_default_str();
  app.add_option("--phase", flags.tuning.phase)->capture_default_str();
  app.add_option("--chunk", flags.tuning.chunk)->capture_default_str();
  app.add_option("--tail", flags.tuning.tail)->capture_default_str();
  app.add_option("--fetch", fetch, "none, l1, l2, nta")
      ->capture_default_str()
      ->check(OneOf(Fetches()));
  app.add_option("--stream-pairs", flags.tuning.stream_pairs, "rows a neuron, of many")
      ->capture_default_str();
  app.add_option("--fetch-lines", flags.tuning.fetch_lines, "of each 4 KiB page")
      ->capture_default_str();
  app.add_option("--out", out, "file to append to; -: stdout")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  flags.tuning.fetch = Fetches().at(fetch);
  flags.all_threads = static_cast<int>(AllowedCpus().size());
  if (flags.threads.empty()) flags.threads.push_back(std::max(1, flags.all_threads - 1));
  if (out != "-") {
    const int fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
      std::fprintf(stderr, "cannot open %s for appending\n", out.c_str());
      return 73;
    }
    ::dup2(fd, STDOUT_FILENO);
    ::close(fd);
  }
  for (const std::string& geometry : flags.geometries) {
    for (const std::string& type : flags.types) {
      for (const std::string& pages : flags.pages) {
        RunOne(flags, Shapes().at(geometry), type, pages);
      }
    }
  }
  return 0;
}
