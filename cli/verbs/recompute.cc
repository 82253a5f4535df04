#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/placement/placement_text.h"
#include "cli/service/grpc_placement_client.h"
#include "cli/verbs/recompute_wait.h"
#include "cli/verbs/target_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/service_process.h"

namespace isotherm::cli {
namespace {

constexpr std::chrono::milliseconds kAskInterval{200};

constexpr char kRecomputeExamples[] =
    R"(The server moves neurons by itself, a little at a time. This asks for the best plan at once, under
another budget if one is given: the answer tells how many neurons move, what they are predicted to
gain and why, or that nothing gains more than its noise and its copy. Asked again with the same --id
it tells how far that one is, and nothing is done twice.

Exit codes: 0 applied, unchanged, proposed or (without --wait) under way; 64 flags; 69 the service is
away, busy with another recomputation, or the plan failed.

Examples:
  isotherm recompute --wait              for a cron job: 0 = applied, or nothing gains enough
  isotherm recompute --dry-run --json    what would move, and what it would gain
  isotherm recompute --budget 24MiB --wait
  isotherm recompute --id nightly-17 --wait   asked again, it is done once)";

struct RecomputeArgs {
  TargetFlags target;
  RecomputeRequest request;
  std::string budget, time_limit;
  bool wait = false;
};

absl::Status Recompute(RecomputeArgs& args, VerbContext& context) {
  if (!args.budget.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(args.request.budget_bytes, ParseBytes(args.budget));
  }
  if (!args.time_limit.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::chrono::milliseconds limit,
                              ParseDuration(args.time_limit));
    args.request.time_limit_us = std::chrono::microseconds(limit).count();
  }
  if (args.request.request_id.empty()) args.request.request_id = RandomId();
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  const std::unique_ptr<PlacementClient> client = MakeGrpcPlacementClient(address);
  return WaitForRecomputation([&] { return client->Recompute(args.request); }, args.wait, context);
}

}  // namespace

absl::Status WaitForRecomputation(const std::function<absl::StatusOr<RecomputationInfo>()>& ask,
                                  bool wait, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(RecomputationInfo info, ask());
  while (wait && !info.ended) {
    std::this_thread::sleep_for(kAskInterval);
    ISOTHERM_ASSIGN_OR_RETURN(info, ask());
  }
  if (context.json) {
    context.console.out << RecomputationJson(info).dump(-1, ' ', false,
                                                        nlohmann::json::error_handler_t::replace)
                        << "\n";
  } else {
    context.console.out << RecomputationText(info);
  }
  if (info.state != "failed") return absl::OkStatus();
  return WithExitCode(absl::AbortedError(absl::StrCat("the recomputation failed: ", info.reason)),
                      ExitCode::kUnavailable);
}

void AddRecomputeVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<RecomputeArgs>();
  CLI::App* verb = app.add_subcommand(
      "recompute",
      "Solves anew for what was learnt of the traffic and moves neurons if that pays.");
  verb->footer(kRecomputeExamples);
  args->target.AddTo(*verb, "placement service");
  verb->add_flag("--dry-run", args->request.dry_run, "tells what would move, moves nothing");
  verb->add_option("--budget", args->budget,
                   "bytes of hot neurons from now on, like 24MiB; see placement budget")
      ->type_name("");
  verb->add_flag("--wait", args->wait, "until it has ended");
  verb->add_option("--id", args->request.request_id,
                   "of this wish: the same one again is not done twice")
      ->type_name("");
  verb->add_option("--if-etag", args->request.if_etag, "only if the live plan has this etag")
      ->type_name("");
  verb->add_option("--time-limit", args->time_limit, "gives up if it is not live by then, like 30s")
      ->type_name("");
  verb->callback([args, &context] { context.status = Recompute(*args, context); });
}

}  // namespace isotherm::cli
