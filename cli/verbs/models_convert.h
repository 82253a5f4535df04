#pragma once

#include <filesystem>
#include <functional>

#include "cli/verbs/verb.h"

namespace isotherm::cli {

// `isotherm models convert`. model_dir: where a bare model name is looked up, known once the flags
// are parsed.
void AddModelsConvertVerb(CLI::App& models, std::function<std::filesystem::path()> model_dir,
                          VerbContext& context);

}  // namespace isotherm::cli
