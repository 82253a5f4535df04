#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/serve/summary.h"
#include "cli/service/grpc_placement_client.h"
#include "cli/ui/share_bar.h"
#include "cli/verbs/target_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  isotherm placement show
  isotherm placement history --last 10
  isotherm placement rollback 3      the contents of epoch 3 become a new epoch
  isotherm placement budget 24MiB    hot neurons may take that much, from now on)";

struct PlacementArgs {
  TargetFlags target;
  int64_t epoch = 0;
  int64_t last = 20;
  int64_t to_epoch = 0;
  std::string bytes;
};

std::string Timestamp(int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return absl::StrFormat("%04d-%02d-%02d %02d:%02d:%02d UTC", utc.tm_year + 1900, utc.tm_mon + 1,
                         utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

nlohmann::ordered_json ToJson(const PlacementInfo& plan, bool with_layers) {
  nlohmann::ordered_json json;
  json["epoch"] = plan.epoch;
  json["etag"] = plan.etag;
  json["cause"] = plan.cause;
  json["from_epoch"] = plan.from_epoch;
  json["created_unix_ms"] = plan.created_unix_ms;
  json["profile"] = plan.profile;
  json["solver"] = plan.solver;
  json["budget_bytes"] = plan.budget_bytes;
  json["used_bytes"] = plan.used_bytes;
  json["expected_hit_share"] = plan.objective;
  if (!with_layers) return json;
  json["hot_share"] = HotShare(plan);
  json["layers"] = nlohmann::ordered_json::array();
  for (const LayerShare& layer : plan.layers) {
    json["layers"].push_back({{"hot_neurons", layer.hot_neurons},
                              {"total_neurons", layer.total_neurons},
                              {"predicted_hit_share", layer.predicted_hit_share}});
  }
  return json;
}

void PrintJson(VerbContext& context, const nlohmann::ordered_json& json) {
  context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                      << "\n";
}

void PrintPlan(VerbContext& context, const PlacementInfo& plan) {
  if (context.json) {
    PrintJson(context, ToJson(plan, true));
    return;
  }
  std::ostream& out = context.console.out;
  if (plan.epoch == 0) {
    out << "epoch 0, built in: no neuron is hot\n";
  } else {
    out << absl::StrCat("epoch ", plan.epoch, ", ", plan.cause,
                        plan.from_epoch > 0 ? absl::StrCat(" of epoch ", plan.from_epoch) : "",
                        ", made ", Timestamp(plan.created_unix_ms), "\n");
    out << absl::StrFormat(
        "%.0f %% of the neurons hot: %s of %s; expected to take %.0f %% of the work "
        "(profile %s)\n",
        100 * HotShare(plan), FormatBytes(plan.used_bytes), FormatBytes(plan.budget_bytes),
        100 * plan.objective, plan.profile);
  }
  if (plan.layers.empty()) return;
  out << "layer  hot neurons                      share  expected hits\n";
  for (size_t idx = 0; idx < plan.layers.size(); ++idx) {
    const LayerShare& layer = plan.layers[idx];
    const double share = layer.total_neurons > 0 ? static_cast<double>(layer.hot_neurons) /
                                                       static_cast<double>(layer.total_neurons)
                                                 : 0;
    out << absl::StrFormat("%5d  %s  %4.0f %%  %4.0f %%\n", idx, ShareBar(share, 32), 100 * share,
                           100 * layer.predicted_hit_share);
  }
}

absl::Status Show(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo plan,
                            MakeGrpcPlacementClient(address)->Show(args.epoch));
  PrintPlan(context, plan);
  return absl::OkStatus();
}

absl::Status History(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  ISOTHERM_ASSIGN_OR_RETURN(const auto entries,
                            MakeGrpcPlacementClient(address)->History(args.last));
  if (context.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const PlacementHistoryEntry& entry : entries) {
      nlohmann::ordered_json item = ToJson(entry.plan, false);
      item["state"] = entry.state;
      item["moved_neurons"] = entry.moved_neurons;
      item["message"] = entry.message;
      json.push_back(std::move(item));
    }
    PrintJson(context, json);
    return absl::OkStatus();
  }
  std::ostream& out = context.console.out;
  out << "epoch  state      cause     made                     hot size  moved     expected\n";
  for (const PlacementHistoryEntry& entry : entries) {
    out << absl::StrFormat("%5d  %-9s  %-8s  %s  %8s  %-8d  %.0f %%%s\n", entry.plan.epoch,
                           entry.state, entry.plan.cause, Timestamp(entry.plan.created_unix_ms),
                           FormatBytes(entry.plan.used_bytes), entry.moved_neurons,
                           100 * entry.plan.objective,
                           entry.message.empty() ? "" : absl::StrCat("  ", entry.message));
  }
  return absl::OkStatus();
}

absl::Status Rollback(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo plan,
                            MakeGrpcPlacementClient(address)->Rollback(args.to_epoch));
  if (context.json) {
    PrintJson(context, ToJson(plan, true));
  } else {
    context.console.out << "epoch " << plan.epoch << " is live with the contents of epoch "
                        << args.to_epoch << "\n";
  }
  return absl::OkStatus();
}

absl::Status SetBudget(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes(args.bytes));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  ISOTHERM_ASSIGN_OR_RETURN(const BudgetChange change,
                            MakeGrpcPlacementClient(address)->SetBudget(bytes));
  if (context.json) {
    nlohmann::ordered_json json;
    json["requested_bytes"] = change.budget.requested_bytes;
    json["effective_bytes"] = change.budget.effective_bytes;
    json["floor_bytes"] = change.budget.floor_bytes;
    json["used_bytes"] = change.budget.used_bytes;
    json["plan"] = ToJson(change.plan, true);
    PrintJson(context, json);
    return absl::OkStatus();
  }
  context.console.out << absl::StrFormat(
      "budget %s (asked: %s), %s used; epoch %d is live, %.0f %% of the neurons hot\n",
      FormatBytes(change.budget.effective_bytes), FormatBytes(change.budget.requested_bytes),
      FormatBytes(change.budget.used_bytes), change.plan.epoch, 100 * HotShare(change.plan));
  return absl::OkStatus();
}

}  // namespace

void AddPlacementVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<PlacementArgs>();
  CLI::App* verb = app.add_subcommand("placement", "Shows and changes which neurons are hot.");
  verb->footer(kExamples);
  verb->require_subcommand(1);
  args->target.AddTo(*verb, "placement service");
  verb->fallthrough();

  CLI::App* show = verb->add_subcommand("show", "The live placement, layer by layer.");
  show->add_option("--epoch", args->epoch, "an older one [live]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("");
  show->callback([args, &context] { context.status = Show(*args, context); });

  CLI::App* history = verb->add_subcommand("history", "Past placements, newest first.");
  history->add_option("--last", args->last, "how many [20]")
      ->check(CLI::Range(int64_t{1}, int64_t{100'000}))
      ->type_name("");
  history->callback([args, &context] { context.status = History(*args, context); });

  CLI::App* rollback =
      verb->add_subcommand("rollback", "Publishes an old placement's contents as a new epoch.");
  rollback->add_option("EPOCH", args->to_epoch, "the epoch to go back to")
      ->required()
      ->check(CLI::PositiveNumber)
      ->type_name("");
  rollback->callback([args, &context] { context.status = Rollback(*args, context); });

  CLI::App* budget = verb->add_subcommand("budget", "Sets how much the hot neurons may take.");
  budget->add_option("BYTES", args->bytes, "bytes, or with a unit: 24MiB")
      ->required()
      ->type_name("");
  budget->callback([args, &context] { context.status = SetBudget(*args, context); });
}

}  // namespace isotherm::cli
