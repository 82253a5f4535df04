#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/config/serve_options.h"

namespace isotherm::cli {

// The serve options as flags of a verb.
class ServeFlags {
 public:
  // Adds a flag for each option but `without`, and --config.
  void AddTo(CLI::App& verb, const std::vector<std::string>& without);
  // Flags over environment over --config over defaults.
  absl::StatusOr<ServeOptions> Resolve(const std::string& model) const;

 private:
  std::map<std::string, std::string> texts_;
  std::vector<std::pair<std::string, CLI::Option*>> flags_;
  std::string config_;
};

}  // namespace isotherm::cli
