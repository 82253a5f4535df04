#include "cli/bench/bench_runner.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "common/base/status_macros.h"
#include "common/process/service_process.h"

namespace isotherm::cli {
namespace {

constexpr char kText[] =
    "The river leaves the hills in a narrow valley and turns east. On its northern bank lies the "
    "old town, whose market was known for salt, wool and copper long before the bridge was built. "
    "In spring the water rises by two metres within a day, and the people who live near the quay "
    "carry what they own to the upper floors. Nobody thinks much of it; the mud is swept out in an "
    "afternoon, and by evening the shops are open again. ";

class DiscardText final : public TextSink {
 public:
  bool OnText(absl::string_view) override { return true; }
};

class ServerSource final : public BenchSource {
 public:
  ServerSource(InferenceClient& client, std::string name, bool exact)
      : client_(client), name_(std::move(name)), exact_(exact) {}

  std::string name() const override { return name_; }

  absl::StatusOr<BenchSample> Run(const BenchCase& bench) override {
    const auto count = static_cast<size_t>(bench.concurrency);
    std::vector<absl::StatusOr<GenerateStats>> results(count, absl::UnknownError("not run"));
    const auto start = std::chrono::steady_clock::now();
    {
      std::vector<std::jthread> threads;
      for (size_t idx = 0; idx < count; ++idx) {
        threads.emplace_back([&, idx] {
          DiscardText sink;
          results[idx] = client_.Generate(Params(bench, idx), sink);
        });
      }
    }
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    ISOTHERM_ASSIGN_OR_RETURN(BenchSample sample, Summarise(results, wall.count()));
    if (bench.concurrency == 1) {
      ISOTHERM_ASSIGN_OR_RETURN(sample.layers, MeasureLayers(bench));
    }
    return sample;
  }

 private:
  // A short answer of its own, so that what is timed runs as it does for everybody.
  absl::StatusOr<std::optional<LayerTimes>> MeasureLayers(const BenchCase& bench) {
    constexpr int64_t kTokens = 32;
    GenerateParams params = Params(bench, 0);
    params.max_tokens = std::min(kTokens, bench.generated_tokens);
    params.layer_timings = true;
    DiscardText sink;
    ISOTHERM_ASSIGN_OR_RETURN(const GenerateStats stats, client_.Generate(params, sink));
    return stats.layers;
  }

  GenerateParams Params(const BenchCase& bench, size_t idx) const {
    GenerateParams params;
    params.request_id = RandomId();
    params.token_ids = bench.prompt;
    // Requests that run together differ from their first token on: nothing is shared by accident.
    std::rotate(params.token_ids.begin(),
                params.token_ids.begin() + static_cast<int64_t>(idx % params.token_ids.size()),
                params.token_ids.end());
    params.temperature = 0;
    params.max_tokens = bench.generated_tokens;
    params.ignore_eos = true;
    params.exact = exact_;
    return params;
  }

  // With one request the rate is that of decoding; with several, of the whole run.
  static absl::StatusOr<BenchSample> Summarise(
      const std::vector<absl::StatusOr<GenerateStats>>& results, double wall_seconds) {
    BenchSample sample;
    int64_t tokens = 0;
    const auto count = static_cast<double>(results.size());
    for (const absl::StatusOr<GenerateStats>& result : results) {
      ISOTHERM_RETURN_IF_ERROR(result.status());
      tokens += result->completion_tokens;
      sample.time_to_first_token_ms += result->time_to_first_token_ms / count;
      sample.gpu_hit_share += result->gpu_hit_share / count;
      if (result->completion_tokens > 1) {
        sample.time_per_token_ms +=
            result->decode_ms / static_cast<double>(result->completion_tokens - 1) / count;
      }
    }
    sample.tokens_per_second = results.size() == 1
                                   ? results.front()->TokensPerSecond()
                                   : static_cast<double>(tokens) / std::max(wall_seconds, 1e-9);
    return sample;
  }

  InferenceClient& client_;
  std::string name_;
  bool exact_;
};

}  // namespace

std::unique_ptr<BenchSource> MakeServerSource(InferenceClient& client, std::string name,
                                              bool exact) {
  return std::make_unique<ServerSource>(client, std::move(name), exact);
}

absl::StatusOr<std::vector<BenchRow>> RunBench(
    const BenchPlan& plan, const std::vector<std::unique_ptr<BenchSource>>& sources,
    const std::function<bool(int64_t done, int64_t total)>& progress) {
  std::vector<BenchRow> rows;
  const auto total =
      static_cast<int64_t>(plan.concurrency.size() * sources.size()) * (plan.repeats + 1);
  int64_t done = 0;
  for (const int64_t concurrency : plan.concurrency) {
    const BenchCase bench{plan.prompt, plan.generated_tokens, concurrency};
    std::vector<std::vector<BenchSample>> samples(sources.size());
    for (int64_t repeat = 0; repeat <= plan.repeats; ++repeat) {
      for (size_t idx = 0; idx < sources.size(); ++idx) {
        if (!progress(done++, total)) return absl::CancelledError("interrupted");
        if (!sources[idx]->Supports(bench)) continue;
        ISOTHERM_ASSIGN_OR_RETURN(const BenchSample sample, sources[idx]->Run(bench));
        if (repeat > 0) samples[idx].push_back(sample);
      }
    }
    for (size_t idx = 0; idx < sources.size(); ++idx) {
      if (samples[idx].empty()) continue;
      rows.push_back(MakeBenchRow(sources[idx]->name(), concurrency, samples[idx]));
    }
  }
  progress(total, total);
  return rows;
}

absl::StatusOr<std::vector<int32_t>> MakeBenchPrompt(InferenceClient& client, int64_t num_tokens) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> once, client.Tokenize(kText));
  if (once.empty()) return absl::InternalError("the server made no tokens of the benchmark's text");
  std::vector<int32_t> prompt;
  while (static_cast<int64_t>(prompt.size()) < num_tokens) {
    const auto left = static_cast<size_t>(num_tokens) - prompt.size();
    prompt.insert(prompt.end(), once.begin(),
                  once.begin() + static_cast<int64_t>(std::min(left, once.size())));
  }
  return prompt;
}

}  // namespace isotherm::cli
