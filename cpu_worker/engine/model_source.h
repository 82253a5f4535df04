#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "cpu_worker/engine/bundle_source.h"
#include "models/model_file.h"

namespace isotherm::cpu {

// The feed-forward neurons of a model file, which the source keeps open (shared with the pack
// function). DataLoss when a bias cannot be read.
absl::StatusOr<BundleSource> SourceOf(std::shared_ptr<const ModelFile> model);

}  // namespace isotherm::cpu
