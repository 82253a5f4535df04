#include "cli/verbs/target_flags.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cli/config/layered_options.h"
#include "cli/config/paths.h"
#include "cli/supervise/server_record.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

absl::StatusOr<ServerRecord> RunningServer(const std::string& state_dir_flag) {
  std::filesystem::path state_dir = DefaultStateDir();
  if (const auto env = RealEnv("ISOTHERM_STATE_DIR"); env.has_value()) state_dir = *env;
  if (!state_dir_flag.empty()) state_dir = state_dir_flag;
  const auto record = ReadServerRecord(state_dir);
  if (record.has_value()) return *record;
  return WithTry(
      WithExitCode(absl::UnavailableError(absl::StrCat("no server runs on ", state_dir.string())),
                   ExitCode::kUnavailable),
      "isotherm serve MODEL, or --url with the address of one elsewhere");
}

}  // namespace

void TargetFlags::AddTo(CLI::App& verb, absl::string_view what) {
  verb.add_option("--url", url_, absl::StrCat("address of the ", what, ": HOST:PORT or unix:/PATH"))
      ->type_name("");
  verb.add_option("--state-dir", state_dir_, "of the server on this host")->type_name("");
}

absl::StatusOr<std::string> TargetFlags::Gateway() const {
  if (!url_.empty()) return url_;
  ISOTHERM_ASSIGN_OR_RETURN(const ServerRecord record, RunningServer(state_dir_));
  return record.gateway;
}

absl::StatusOr<std::string> TargetFlags::Placement() const {
  if (!url_.empty()) return url_;
  ISOTHERM_ASSIGN_OR_RETURN(const ServerRecord record, RunningServer(state_dir_));
  return record.placement;
}

}  // namespace isotherm::cli
