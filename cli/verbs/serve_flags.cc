#include "cli/verbs/serve_flags.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {

void ServeFlags::AddTo(CLI::App& verb, const std::vector<std::string>& without) {
  for (const OptionSpec& spec : ServeOptionSpecs()) {
    if (spec.key == "model") continue;  // the verb's first argument
    if (std::find(without.begin(), without.end(), spec.key) != without.end()) continue;
    std::string help = spec.help;
    if (!spec.default_value.empty()) absl::StrAppend(&help, " [", spec.default_value, "]");
    flags_.emplace_back(
        spec.key,
        verb.add_option(absl::StrCat("--", spec.key), texts_[spec.key], help)->type_name(""));
  }
  verb.add_option("--config", config_, "YAML file of option: value (flags and ISOTHERM_* win)")
      ->type_name("FILE");
}

absl::StatusOr<ServeOptions> ServeFlags::Resolve(const std::string& model) const {
  std::map<std::string, std::string> given;
  for (const auto& [key, option] : flags_) {
    if (option->count() > 0) given[key] = texts_.at(key);
  }
  if (!model.empty()) given["model"] = model;
  std::optional<std::filesystem::path> config;
  if (!config_.empty()) config = config_;
  ISOTHERM_ASSIGN_OR_RETURN(const LayeredOptions values,
                            LayeredOptions::Resolve(ServeOptionSpecs(), given, RealEnv, config));
  return ParseServeOptions(values);
}

}  // namespace isotherm::cli
