#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// $XDG_DATA_HOME/isotherm/models, else ~/.local/share/isotherm/models.
std::filesystem::path DefaultModelDir();
// $XDG_STATE_HOME/isotherm, else ~/.local/state/isotherm.
std::filesystem::path DefaultStateDir();
// $XDG_CACHE_HOME/isotherm, else ~/.cache/isotherm.
std::filesystem::path DefaultCacheDir();

// The folder of this program: the services lie beside it.
std::filesystem::path ProgramDir();

// Model files of `model_dir`, sorted; profiles (*.profile.gguf) are not models.
std::vector<std::filesystem::path> ListModels(const std::filesystem::path& model_dir);

// `model` is a path, or a name in `model_dir`: NAME, NAME.gguf, or NAME-<format>.gguf (q8_0 before
// f16 before q4_0 when there are several). The absolute path of a regular file. NotFound says
// where was looked, exit code 65.
absl::StatusOr<std::filesystem::path> ResolveModel(absl::string_view model,
                                                   const std::filesystem::path& model_dir);

}  // namespace isotherm::cli
