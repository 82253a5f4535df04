#pragma once

#include <memory>

#include "absl/strings/string_view.h"
#include "cli/client/placement_client.h"

namespace isotherm::cli {

std::unique_ptr<PlacementClient> MakeGrpcPlacementClient(absl::string_view address);

}  // namespace isotherm::cli
