#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

struct OptionSpec {
  std::string key;  // "grpc-listen": flag --grpc-listen, ISOTHERM_GRPC_LISTEN, YAML grpc-listen
  std::string default_value;
  std::string help;
};

struct OptionValue {
  std::string text;
  std::string origin;  // "--parallel", "ISOTHERM_PARALLEL", "isotherm.yaml", "default"
};

// The value of each option and where it came from. Flag > environment > YAML file > default.
class LayeredOptions {
 public:
  using GetEnv = std::function<std::optional<std::string>(const std::string& name)>;

  // `flags` has the options given on the command line. The YAML file is a flat map of keys (with -
  // or _) to scalars; a key that no option has is InvalidArgument with the nearest match, a file
  // that cannot be read NotFound, anything else in it InvalidArgument with its line.
  static absl::StatusOr<LayeredOptions> Resolve(const std::vector<OptionSpec>& specs,
                                                const std::map<std::string, std::string>& flags,
                                                const GetEnv& get_env,
                                                const std::optional<std::filesystem::path>& yaml);

  const OptionValue& at(absl::string_view key) const;

 private:
  std::map<std::string, OptionValue, std::less<>> values_;
};

// ISOTHERM_GRPC_LISTEN for "grpc-listen".
std::string EnvName(absl::string_view key);
std::optional<std::string> RealEnv(const std::string& name);

}  // namespace isotherm::cli
