#include "cli/serve/summary.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/units.h"

namespace isotherm::cli {

double HotShare(const PlacementInfo& placement) {
  int64_t hot = 0;
  int64_t total = 0;
  for (const LayerShare& layer : placement.layers) {
    hot += layer.hot_neurons;
    total += layer.total_neurons;
  }
  return total > 0 ? static_cast<double>(hot) / static_cast<double>(total) : 0.0;
}

std::string FormatCount(int64_t count) {
  const auto value = static_cast<double>(count);
  if (value >= 1e9) return absl::StrFormat("%.3g B", value / 1e9);
  if (value >= 1e6) return absl::StrFormat("%.3g M", value / 1e6);
  return absl::StrCat(count);
}

std::string SummaryText(const ServerSummary& summary) {
  std::string name = std::filesystem::path(summary.model_file).stem().string();
  std::string text = absl::StrFormat("ready after %.1f s\n", summary.load_seconds);
  if (summary.model.has_value()) {
    const ServedModel& model = *summary.model;
    name = model.name;
    absl::StrAppend(&text, "  model      ", model.name, " (", model.architecture, ", ",
                    model.quantisation, ", ", FormatCount(model.parameters), " parameters, ",
                    model.sparse ? "sparse" : "dense: all neurons active", ")\n");
    absl::StrAppend(&text, "  context    ", model.context_length, " tokens, up to ",
                    summary.parallel, " requests at once\n");
    if (!model.chat_template) {
      absl::StrAppend(&text, "  chat       none: the model has no template (--chat-template)\n");
    }
  }
  if (summary.placement.has_value() && summary.placement->epoch > 0) {
    absl::StrAppendFormat(&text,
                          "  placement  epoch %d: %.0f %% of the neurons hot in %s, "
                          "expected to take %.0f %% of the work\n",
                          summary.placement->epoch, 100 * HotShare(*summary.placement),
                          FormatBytes(summary.placement->used_bytes),
                          100 * summary.placement->objective);
  }
  absl::StrAppend(&text, "  gRPC       ", summary.address, "\n");
  absl::StrAppend(&text, "  ask it     isotherm run ", name, " \"Why is the sky blue?\"\n");
  return text;
}

std::string SummaryJson(const ServerSummary& summary) {
  nlohmann::ordered_json json;
  json["ready"] = true;
  json["address"] = summary.address;
  json["model_file"] = summary.model_file;
  json["load_seconds"] = summary.load_seconds;
  json["parallel"] = summary.parallel;
  if (summary.model.has_value()) {
    json["model"] = summary.model->name;
    json["architecture"] = summary.model->architecture;
    json["quantisation"] = summary.model->quantisation;
    json["parameters"] = summary.model->parameters;
    json["context_length"] = summary.model->context_length;
    json["sparse"] = summary.model->sparse;
  }
  if (summary.placement.has_value()) {
    json["epoch"] = summary.placement->epoch;
    json["hot_share"] = HotShare(*summary.placement);
    json["expected_hit_share"] = summary.placement->objective;
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace isotherm::cli
