#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/client/inference_client.h"
#include "cli/client/placement_client.h"

namespace isotherm::cli {

// What a server says of itself once it is ready; parts that could not be asked are absent.
struct ServerSummary {
  std::string model_file;
  std::string address;
  double load_seconds = 0;
  int64_t parallel = 0;
  std::optional<ServedModel> model;
  std::optional<PlacementInfo> placement;
};

std::string SummaryText(const ServerSummary& summary);
std::string SummaryJson(const ServerSummary& summary);

// Hot neurons of all layers over all neurons; 0 without layers.
double HotShare(const PlacementInfo& placement);

// "135 M", "7.24 B"
std::string FormatCount(int64_t count);

}  // namespace isotherm::cli
