#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/bench/bench_row.h"
#include "cli/client/inference_client.h"

namespace isotherm::cli {

struct BenchCase {
  std::vector<int32_t> prompt;
  int64_t generated_tokens = 128;
  int64_t concurrency = 1;
};

// Something that is measured: a server, or a baseline to compare it with.
class BenchSource {
 public:
  virtual ~BenchSource() = default;
  virtual std::string name() const = 0;
  // False: left out of the rows of that concurrency.
  virtual bool Supports(const BenchCase& bench) const { return true; }
  virtual absl::StatusOr<BenchSample> Run(const BenchCase& bench) = 0;
};

// A server in predictor mode, or with every neuron computed. `client` outlives it.
std::unique_ptr<BenchSource> MakeServerSource(InferenceClient& client, std::string name,
                                              bool exact);

struct BenchPlan {
  std::vector<int32_t> prompt;
  int64_t generated_tokens = 128;
  std::vector<int64_t> concurrency = {1};
  int64_t repeats = 3;
};

// Runs the sources in turn, repeat by repeat, so that a machine that slows down slows all of them;
// one run of each before is not counted. `progress`: runs done, runs in all.
absl::StatusOr<std::vector<BenchRow>> RunBench(
    const BenchPlan& plan, const std::vector<std::unique_ptr<BenchSource>>& sources,
    const std::function<bool(int64_t done, int64_t total)>& progress);

// `num_tokens` tokens of English text in the model's vocabulary.
absl::StatusOr<std::vector<int32_t>> MakeBenchPrompt(InferenceClient& client, int64_t num_tokens);

}  // namespace isotherm::cli
