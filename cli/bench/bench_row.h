#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace isotherm::cli {

// One measured run of a source: `concurrency` requests at once.
struct BenchSample {
  double time_to_first_token_ms = 0;  // mean over the requests
  double time_per_token_ms = 0;       // after the first, mean over the requests
  double tokens_per_second = 0;       // of all requests together
  double gpu_hit_share = 0;
};

struct Spread {
  double median = 0;
  double low = 0;
  double high = 0;
};

// One line of the result: a source at one concurrency, over all repeats.
struct BenchRow {
  std::string name;
  int64_t concurrency = 1;
  int64_t repeats = 0;
  Spread time_to_first_token_ms;
  Spread time_per_token_ms;
  Spread tokens_per_second;
  Spread gpu_hit_share;
  std::string note;  // for rows of another kind, such as a limit
};

// 0s for no values.
Spread SpreadOf(std::vector<double> values);
BenchRow MakeBenchRow(std::string name, int64_t concurrency,
                      const std::vector<BenchSample>& samples);

std::string BenchTable(const std::vector<BenchRow>& rows);
std::string BenchJson(const std::vector<BenchRow>& rows, int64_t prompt_tokens,
                      int64_t generated_tokens);

}  // namespace isotherm::cli
