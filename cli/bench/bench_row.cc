#include "cli/bench/bench_row.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"

namespace isotherm::cli {
namespace {

nlohmann::ordered_json ToJson(const Spread& spread) {
  return {{"median", spread.median}, {"low", spread.low}, {"high", spread.high}};
}

struct LayerColumn {
  const char* title;
  const char* key;
  double LayerTimes::*field;
};
constexpr LayerColumn kLayerColumns[] = {{"attention", "attention_us", &LayerTimes::attention_us},
                                         {"predict", "predict_us", &LayerTimes::predict_us},
                                         {"hot", "hot_us", &LayerTimes::hot_us},
                                         {"cold", "cold_us", &LayerTimes::cold_us},
                                         {"PCIe", "streamed_us", &LayerTimes::streamed_us},
                                         {"wait", "wait_us", &LayerTimes::wait_us},
                                         {"merge", "merge_us", &LayerTimes::merge_us},
                                         {"hand-off", "handoff_us", &LayerTimes::handoff_us}};

std::optional<LayerTimes> MedianLayers(const std::vector<BenchSample>& samples) {
  LayerTimes medians;
  for (const LayerColumn& column : kLayerColumns) {
    std::vector<double> values;
    for (const BenchSample& sample : samples) {
      if (sample.layers.has_value()) values.push_back((*sample.layers).*column.field);
    }
    if (values.empty()) return std::nullopt;
    medians.*column.field = SpreadOf(std::move(values)).median;
  }
  return medians;
}

}  // namespace

Spread SpreadOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
  return {median, values.front(), values.back()};
}

BenchRow MakeBenchRow(std::string name, int64_t concurrency,
                      const std::vector<BenchSample>& samples) {
  const auto spread_of = [&samples](double BenchSample::*field) {
    std::vector<double> values;
    values.reserve(samples.size());
    for (const BenchSample& sample : samples) values.push_back(sample.*field);
    return SpreadOf(std::move(values));
  };
  return {.name = std::move(name),
          .concurrency = concurrency,
          .repeats = static_cast<int64_t>(samples.size()),
          .time_to_first_token_ms = spread_of(&BenchSample::time_to_first_token_ms),
          .time_per_token_ms = spread_of(&BenchSample::time_per_token_ms),
          .tokens_per_second = spread_of(&BenchSample::tokens_per_second),
          .gpu_hit_share = spread_of(&BenchSample::gpu_hit_share),
          .bytes_per_token = spread_of(&BenchSample::bytes_per_token).median,
          .active_share = spread_of(&BenchSample::active_share).median,
          .layers = MedianLayers(samples)};
}

void CompleteRows(const std::vector<std::pair<std::string, std::string>>& like,
                  double read_bytes_per_second, std::vector<BenchRow>& rows) {
  for (BenchRow& row : rows) {
    if (row.concurrency != 1) continue;
    for (const auto& [name, twin] : like) {
      if (row.name != name || row.bytes_per_token > 0) continue;
      for (const BenchRow& other : rows) {
        if (other.name != twin || other.concurrency != 1) continue;
        row.bytes_per_token = other.bytes_per_token;
        row.active_share = other.active_share;
      }
    }
    if (read_bytes_per_second > 0) {
      row.read_share = row.bytes_per_token * row.tokens_per_second.median / read_bytes_per_second;
    }
  }
}

std::string BenchTable(const std::vector<BenchRow>& rows) {
  std::string table = absl::StrFormat("%-32s %5s %22s %10s %10s %7s %9s %7s\n", "", "at",
                                      "tokens/s", "first", "per token", "", "MB read", "of the");
  absl::StrAppendFormat(&table, "%-32s %5s %22s %10s %10s %7s %9s %7s\n", "median of the repeats",
                        "once", "(low - high)", "token, ms", "ms", "hot", "a token", "limit");
  for (const BenchRow& row : rows) {
    absl::StrAppendFormat(&table, "%-32s %5d %22s %10.1f %10.2f %5.0f %%", row.name,
                          row.concurrency,
                          absl::StrFormat("%.1f (%.1f - %.1f)", row.tokens_per_second.median,
                                          row.tokens_per_second.low, row.tokens_per_second.high),
                          row.time_to_first_token_ms.median, row.time_per_token_ms.median,
                          100 * row.gpu_hit_share.median);
    if (row.bytes_per_token > 0) {
      absl::StrAppendFormat(&table, " %9.1f", row.bytes_per_token / 1e6);
      if (row.read_share > 0) absl::StrAppendFormat(&table, " %5.0f %%", 100 * row.read_share);
    }
    absl::StrAppendFormat(&table, "%s%s\n", row.note.empty() ? "" : "  ", row.note);
  }
  return table;
}

std::string LayerTable(const std::vector<BenchRow>& rows) {
  std::string table;
  for (const BenchRow& row : rows) {
    if (!row.layers.has_value()) continue;
    if (table.empty()) {
      absl::StrAppendFormat(&table, "%-38s", "us of a layer, decoding");
      for (const LayerColumn& column : kLayerColumns)
        absl::StrAppendFormat(&table, " %9s", column.title);
      table += "\n";
    }
    absl::StrAppendFormat(&table, "%-32s %5d", row.name, row.concurrency);
    for (const LayerColumn& column : kLayerColumns)
      absl::StrAppendFormat(&table, " %9.1f", (*row.layers).*column.field);
    table += "\n";
  }
  return table;
}

std::string BenchJson(const std::vector<BenchRow>& rows, int64_t prompt_tokens,
                      int64_t generated_tokens, const Spread& read_bytes_per_second) {
  nlohmann::ordered_json json;
  json["prompt_tokens"] = prompt_tokens;
  json["generated_tokens"] = generated_tokens;
  if (read_bytes_per_second.median > 0) {
    json["read_bytes_per_second"] = ToJson(read_bytes_per_second);
  }
  json["rows"] = nlohmann::ordered_json::array();
  for (const BenchRow& row : rows) {
    nlohmann::ordered_json item;
    item["name"] = row.name;
    item["concurrency"] = row.concurrency;
    item["repeats"] = row.repeats;
    item["tokens_per_second"] = ToJson(row.tokens_per_second);
    item["time_to_first_token_ms"] = ToJson(row.time_to_first_token_ms);
    item["time_per_token_ms"] = ToJson(row.time_per_token_ms);
    item["gpu_hit_share"] = ToJson(row.gpu_hit_share);
    if (row.bytes_per_token > 0) item["bytes_per_token"] = row.bytes_per_token;
    if (row.active_share > 0) item["active_share"] = row.active_share;
    if (row.read_share > 0) item["read_share"] = row.read_share;
    if (row.layers.has_value()) {
      for (const LayerColumn& column : kLayerColumns)
        item["layer"][column.key] = (*row.layers).*column.field;
    }
    if (!row.note.empty()) item["note"] = row.note;
    json["rows"].push_back(std::move(item));
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace isotherm::cli
