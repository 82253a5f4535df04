#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// --url and --state-dir of a verb that talks to a running server.
class TargetFlags {
 public:
  void AddTo(CLI::App& verb, absl::string_view what);
  // --url, else the address in the record of the server that runs on the state folder. Unavailable
  // (69) when there is neither.
  absl::StatusOr<std::string> Gateway() const;
  absl::StatusOr<std::string> Placement() const;

 private:
  std::string url_;
  std::string state_dir_;
};

}  // namespace isotherm::cli
