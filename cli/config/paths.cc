#include "cli/config/paths.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

fs::path XdgDir(const char* variable, const char* below_home) {
  if (const char* value = std::getenv(variable); value != nullptr && value[0] == '/') return value;
  const char* home = std::getenv("HOME");
  return fs::path(home != nullptr && home[0] != '\0' ? home : "/tmp") / below_home;
}

std::optional<fs::path> RegularFile(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  const fs::path absolute = fs::canonical(path, error);
  return error ? path : absolute;
}

}  // namespace

fs::path DefaultModelDir() { return XdgDir("XDG_DATA_HOME", ".local/share") / "isotherm/models"; }
fs::path DefaultStateDir() { return XdgDir("XDG_STATE_HOME", ".local/state") / "isotherm"; }
fs::path DefaultCacheDir() { return XdgDir("XDG_CACHE_HOME", ".cache") / "isotherm"; }

fs::path ProgramDir() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path(".") : self.parent_path();
}

std::vector<fs::path> ListModels(const fs::path& model_dir) {
  std::vector<fs::path> models;
  std::error_code error;
  for (fs::directory_iterator it(model_dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::EndsWith(name, ".gguf") && !absl::EndsWith(name, ".profile.gguf") &&
        RegularFile(it->path()).has_value()) {
      models.push_back(it->path());
    }
  }
  std::sort(models.begin(), models.end());
  return models;
}

absl::StatusOr<fs::path> ResolveModel(absl::string_view model, const fs::path& model_dir) {
  if (model.empty()) {
    return WithTry(absl::InvalidArgumentError("no model given"), "isotherm models ls");
  }
  const std::string name(model);
  if (const auto file = RegularFile(name); file.has_value()) return *file;
  if (!absl::StrContains(model, '/')) {
    for (const char* suffix : {"", ".gguf", "-q8_0.gguf", "-f16.gguf", "-q4_0.gguf"}) {
      if (const auto file = RegularFile(model_dir / absl::StrCat(name, suffix)); file.has_value()) {
        return *file;
      }
    }
  }
  const bool is_path = absl::StrContains(model, '/') || absl::EndsWith(model, ".gguf");
  absl::Status status =
      WithExitCode(absl::NotFoundError(is_path ? absl::StrCat("no model file at '", name, "'")
                                               : absl::StrCat("no model named '", name, "' in ",
                                                              model_dir.string())),
                   ExitCode::kBadData);
  return WithTry(std::move(status), name == "smollm2-relu" ? "isotherm models build smollm2-relu"
                                                           : "isotherm models ls");
}

}  // namespace isotherm::cli
