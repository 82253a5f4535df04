#include "cli/config/layered_options.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/config/nearest_match.h"
#include "cli/ui/remedy.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

absl::Status BadConfig(const std::filesystem::path& path, absl::string_view what) {
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", what)),
                      ExitCode::kUsage);
}

absl::StatusOr<std::string> ReadConfig(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return BadConfig(path, absl::StrCat("cannot be read: ", error.message()));
  if (size > kMaxConfigBytes) return BadConfig(path, "larger than 1 MiB");
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.good() && !file.eof()) return BadConfig(path, "cannot be read");
  return text.str();
}

absl::StatusOr<std::map<std::string, std::string>> ParseConfig(
    const std::filesystem::path& path, const std::vector<std::string>& known) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ReadConfig(path));
  std::map<std::string, std::string> values;
  try {  // yaml-cpp reports by exceptions; none leaves this function
    const YAML::Node root = YAML::Load(text);
    if (root.IsNull()) return values;
    if (!root.IsMap()) return BadConfig(path, "is not a map of option: value");
    for (const auto& entry : root) {
      const int line = entry.first.Mark().line + 1;
      if (!entry.first.IsScalar() || !entry.second.IsScalar()) {
        return BadConfig(path, absl::StrCat("line ", line, ": wanted option: value"));
      }
      const std::string key = absl::StrReplaceAll(entry.first.Scalar(), {{"_", "-"}});
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        const std::string nearest = NearestMatch(key, known);
        return WithTry(BadConfig(path, absl::StrCat("line ", line, ": unknown option '", key, "'")),
                       nearest.empty() ? "isotherm serve --help" : absl::StrCat(nearest, ": ..."));
      }
      if (!values.emplace(key, entry.second.Scalar()).second) {
        return BadConfig(path, absl::StrCat("line ", line, ": '", key, "' is given twice"));
      }
    }
  } catch (const YAML::Exception& error) {
    return BadConfig(path, absl::StrCat("line ", error.mark.line + 1, ": ", error.msg));
  }
  return values;
}

}  // namespace

absl::StatusOr<LayeredOptions> LayeredOptions::Resolve(
    const std::vector<OptionSpec>& specs, const std::map<std::string, std::string>& flags,
    const GetEnv& get_env, const std::optional<std::filesystem::path>& yaml) {
  std::vector<std::string> known;
  known.reserve(specs.size());
  for (const OptionSpec& spec : specs) known.push_back(spec.key);
  std::map<std::string, std::string> from_file;
  if (yaml.has_value()) {
    ISOTHERM_ASSIGN_OR_RETURN(from_file, ParseConfig(*yaml, known));
  }
  LayeredOptions options;
  for (const OptionSpec& spec : specs) {
    OptionValue value{spec.default_value, "default"};
    if (const auto it = from_file.find(spec.key); it != from_file.end()) {
      value = {it->second, yaml->string()};
    }
    if (const auto env = get_env(EnvName(spec.key)); env.has_value()) {
      value = {*env, EnvName(spec.key)};
    }
    if (const auto it = flags.find(spec.key); it != flags.end()) {
      value = {it->second, absl::StrCat("--", spec.key)};
    }
    options.values_.emplace(spec.key, std::move(value));
  }
  return options;
}

const OptionValue& LayeredOptions::at(absl::string_view key) const {
  const auto it = values_.find(std::string(key));
  ISOTHERM_CHECK(it != values_.end());
  return it->second;
}

std::string EnvName(absl::string_view key) {
  return absl::StrCat("ISOTHERM_", absl::AsciiStrToUpper(absl::StrReplaceAll(key, {{"-", "_"}})));
}

std::optional<std::string> RealEnv(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

}  // namespace isotherm::cli
