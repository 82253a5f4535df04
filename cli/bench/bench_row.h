#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/client/inference_client.h"

namespace isotherm::cli {

// One measured run of a source: `concurrency` requests at once.
struct BenchSample {
  double time_to_first_token_ms = 0;  // mean over the requests
  double time_per_token_ms = 0;       // after the first, mean over the requests
  double tokens_per_second = 0;       // of all requests together
  double gpu_hit_share = 0;
  double bytes_per_token = 0;        // of weights, in decoding; 0: not known
  double active_share = 0;           // of all neurons, those computed; 0: not known
  std::optional<LayerTimes> layers;  // while decoding
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
  double bytes_per_token = 0;  // medians; 0: not known
  double active_share = 0;
  double read_share = 0;  // bytes read a second, of what the machine can read; 0: not known
  std::optional<LayerTimes> layers;  // medians, each on its own
  std::string note;                  // for rows of another kind, such as a limit
};

// 0s for no values.
Spread SpreadOf(std::vector<double> values);
BenchRow MakeBenchRow(std::string name, int64_t concurrency,
                      const std::vector<BenchSample>& samples);

// Fills in read_share, and bytes_per_token of a row that lacks it from the row named `like`: the
// same tokens need the same weights wherever they are computed.
void CompleteRows(const std::vector<std::pair<std::string, std::string>>& like,
                  double read_bytes_per_second, std::vector<BenchRow>& rows);

std::string BenchTable(const std::vector<BenchRow>& rows);
// Where a layer's time went, of the rows that know; empty when none does.
std::string LayerTable(const std::vector<BenchRow>& rows);
// `read_bytes_per_second` of the machine, measured between the runs; all 0: not measured.
std::string BenchJson(const std::vector<BenchRow>& rows, int64_t prompt_tokens,
                      int64_t generated_tokens, const Spread& read_bytes_per_second);

}  // namespace isotherm::cli
