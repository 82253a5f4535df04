#pragma once

#include <memory>

#include "cpu_worker/engine/bundle_source.h"
#include "models/model_file.h"

namespace isotherm::cpu {

// The feed-forward neurons of a model file, which the source keeps open.
BundleSource SourceOf(std::shared_ptr<const ModelFile> model);  // shared with the pack function

}  // namespace isotherm::cpu
