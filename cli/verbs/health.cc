#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/config/paths.h"
#include "cli/service/grpc_health_client.h"
#include "cli/verbs/target_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

constexpr char kHealthExamples[] = R"(Examples:
  isotherm health
  isotherm health --url 127.0.0.1:8001 --timeout 2s

Exit code 0: serving; 69: not serving, or nobody answers.)";

struct HealthArgs {
  TargetFlags target;
  std::string service;
  std::string timeout = "2s";
};

absl::Status Health(const HealthArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto timeout, ParseDuration(args.timeout));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Gateway());
  ISOTHERM_ASSIGN_OR_RETURN(const std::string status, CheckHealth(address, args.service, timeout));
  if (context.json) {
    nlohmann::ordered_json json;
    json["address"] = address;
    json["service"] = args.service;
    json["status"] = status;
    context.console.out << json.dump() << "\n";
  } else {
    context.console.out << status << "\n";
  }
  if (status == "SERVING") return absl::OkStatus();
  return WithExitCode(absl::UnavailableError(absl::StrCat(address, " answers ", status)),
                      ExitCode::kUnavailable);
}

}  // namespace

void AddHealthVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<HealthArgs>();
  CLI::App* verb =
      app.add_subcommand("health", "Asks whether a server serves (exit code 0 or 69).");
  verb->footer(kHealthExamples);
  args->target.AddTo(*verb, "gateway, or any other service");
  verb->add_option("--service", args->service, "full service name [the whole process]")
      ->type_name("");
  verb->add_option("--timeout", args->timeout, "how long to wait for an answer [2s]")
      ->type_name("");
  verb->callback([args, &context] { context.status = Health(*args, context); });
}

}  // namespace isotherm::cli
