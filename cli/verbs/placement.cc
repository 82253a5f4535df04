#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/placement/placement_files.h"
#include "cli/placement/placement_text.h"
#include "cli/serve/summary.h"
#include "cli/service/grpc_placement_client.h"
#include "cli/verbs/recompute_wait.h"
#include "cli/verbs/target_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/service_process.h"

namespace isotherm::cli {
namespace {

constexpr char kPlacementExamples[] =
    R"(Neurons that fire often are hot: the GPU side keeps a copy of them, the rest is computed by the
CPU side. A placement says which are hot; each change of it is a new epoch, made while requests run,
and never changes a token. By itself the server follows the traffic: `history` says why each epoch
came, `show` why it stays. `pin` stops that, `isotherm recompute` asks for a change now.

Examples:
  isotherm placement show
  isotherm placement history --last 10
  isotherm placement diff 3 7        which neurons came and went, layer by layer
  isotherm placement watch           what happens, as it happens
  isotherm placement rollback 3      the contents of epoch 3 become a new epoch
  isotherm placement pin             neurons stay where they are, until: unpin
  isotherm placement budget 24MiB    hot neurons may take that much, from now on, within --vram-budget
  isotherm placement export chat.profile.gguf       what was learnt of the traffic
  isotherm placement import model.generated.gpuidx  PowerInfer's choice of hot neurons)";

struct PlacementArgs {
  TargetFlags target;
  int64_t epoch = 0;
  int64_t last = 20;
  int64_t to_epoch = 0;
  bool pin = false;
  std::string bytes;
  int64_t from = 0, to = 0;
  int64_t events = 0;
  std::string file, profile;
  double tokens = 0;
  bool dry_run = false;
};

void PrintJson(VerbContext& context, const nlohmann::ordered_json& json) {
  context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n"
                      << std::flush;
}

absl::StatusOr<std::unique_ptr<PlacementClient>> Client(const PlacementArgs& args) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string address, args.target.Placement());
  return MakeGrpcPlacementClient(address);
}

absl::Status Show(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo plan, client->Show(args.epoch, /*which=*/false));
  if (context.json) {
    PrintJson(context, PlanJson(plan, true));
  } else {
    context.console.out << PlanText(plan);
  }
  return absl::OkStatus();
}

absl::Status History(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(const auto entries, client->History(args.last));
  if (context.json) {
    PrintJson(context, HistoryJson(entries));
  } else {
    context.console.out << HistoryText(entries);
  }
  return absl::OkStatus();
}

absl::Status Diff(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo a, client->Show(args.from, /*which=*/true));
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo b, client->Show(args.to, /*which=*/true));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<LayerDiff> layers, DiffPlans(a, b));
  if (context.json) {
    PrintJson(context, DiffJson(a, b, layers));
  } else {
    context.console.out << DiffText(a, b, layers);
  }
  return absl::OkStatus();
}

absl::Status Watch(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  int64_t seen = 0;
  return client->Watch([&](const PlacementEvent& event) {
    if (context.json) {
      PrintJson(context, EventJson(event));
    } else {
      context.console.out << EventText(event) << std::flush;
    }
    return args.events == 0 || ++seen < args.events;
  });
}

absl::Status Rollback(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(PlacementInfo plan, client->Rollback(args.to_epoch));
  if (args.pin) {
    ISOTHERM_ASSIGN_OR_RETURN(plan, client->SetPin(true));
  }
  if (context.json) {
    PrintJson(context, PlanJson(plan, true));
  } else {
    context.console.out << "epoch " << plan.epoch << " is live with the contents of epoch "
                        << args.to_epoch
                        << (args.pin ? " and pinned\n"
                                     : "; it follows the traffic from here, unless pinned\n");
  }
  return absl::OkStatus();
}

absl::Status SetPin(const PlacementArgs& args, bool pinned, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo plan, client->SetPin(pinned));
  if (context.json) {
    PrintJson(context, PlanJson(plan, true));
  } else {
    context.console.out << "epoch " << plan.epoch
                        << (plan.pinned ? " is pinned: it stays as it is\n"
                                        : " follows the traffic again\n");
  }
  return absl::OkStatus();
}

absl::Status SetBudget(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes(args.bytes));
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  ISOTHERM_ASSIGN_OR_RETURN(const BudgetChange change, client->SetBudget(bytes));
  if (context.json) {
    nlohmann::ordered_json json;
    json["requested_bytes"] = change.budget.requested_bytes;
    json["effective_bytes"] = change.budget.effective_bytes;
    json["floor_bytes"] = change.budget.floor_bytes;
    json["used_bytes"] = change.budget.used_bytes;
    json["plan"] = PlanJson(change.plan, true);
    PrintJson(context, json);
    return absl::OkStatus();
  }
  context.console.out << absl::StrFormat(
      "budget %s (asked: %s), %s used; epoch %d is live, %.0f %% of the neurons hot\n",
      FormatBytes(change.budget.effective_bytes), FormatBytes(change.budget.requested_bytes),
      FormatBytes(change.budget.used_bytes), change.plan.epoch, 100 * HotShare(change.plan));
  return absl::OkStatus();
}

absl::Status Export(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  nlohmann::ordered_json json = {{"file", args.file}};
  std::string text;
  if (IsPlanFile(args.file)) {
    ISOTHERM_ASSIGN_OR_RETURN(const PlacementInfo plan, client->Show(args.epoch, /*which=*/true));
    ISOTHERM_RETURN_IF_ERROR(WritePlanFile(args.file, plan));
    json["epoch"] = plan.epoch;
    text = absl::StrCat("the hot sets of epoch ", plan.epoch);
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(ProfileInfo profile, client->GetProfile());
    if (!args.profile.empty()) profile.name = args.profile;
    ISOTHERM_RETURN_IF_ERROR(WriteProfileFile(args.file, profile));
    json["profile"] = profile.name;
    json["tokens"] = profile.tokens;
    text = absl::StrFormat("profile %s, worth %.0f tokens", profile.name, profile.tokens);
  }
  if (context.json) {
    PrintJson(context, json);
  } else {
    context.console.out << text << " -> " << args.file << "\n";
  }
  return absl::OkStatus();
}

absl::Status Import(const PlacementArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto client, Client(args));
  if (IsPlanFile(args.file)) {
    ISOTHERM_ASSIGN_OR_RETURN(PlanImport plan, ReadPlanFile(args.file));
    plan.request_id = RandomId();
    plan.dry_run = args.dry_run;
    return WaitForRecomputation([&] { return client->ImportPlan(plan); }, /*wait=*/true, context);
  }
  ISOTHERM_ASSIGN_OR_RETURN(ProfileInfo profile, ReadProfileFile(args.file, args.profile));
  profile.tokens = args.tokens;
  ISOTHERM_RETURN_IF_ERROR(client->ImportProfile(profile));
  if (context.json) {
    PrintJson(context, {{"profile", profile.name}});
  } else {
    context.console.out << "learning starts over from the profile " << profile.name
                        << "; `isotherm recompute` makes a plan of it at once\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddPlacementVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<PlacementArgs>();
  CLI::App* verb = app.add_subcommand("placement", "Shows and changes which neurons are hot.");
  verb->footer(kPlacementExamples);
  verb->require_subcommand(1);
  args->target.AddTo(*verb, "placement service");
  verb->fallthrough();
  const auto add = [&](const char* name, const char* what, auto run) {
    CLI::App* sub = verb->add_subcommand(name, what);
    sub->callback([args, &context, run] { context.status = run(*args, context); });
    return sub;
  };

  CLI::App* show = add("show", "The live placement, layer by layer.", Show);
  show->add_option("--epoch", args->epoch, "an older one [live]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("");

  CLI::App* history = add("history", "Past placements, newest first.", History);
  history->add_option("--last", args->last, "how many [20]")
      ->check(CLI::Range(int64_t{1}, int64_t{100'000}))
      ->type_name("");

  CLI::App* diff = add("diff", "What changes from one placement to another.", Diff);
  diff->add_option("FROM", args->from, "an epoch; 0: the live one")
      ->required()
      ->check(CLI::NonNegativeNumber)
      ->type_name("");
  diff->add_option("TO", args->to, "an epoch; 0: the live one")
      ->required()
      ->check(CLI::NonNegativeNumber)
      ->type_name("");

  CLI::App* watch = add("watch", "Plans, recomputations and alarms as they happen.", Watch);
  watch->add_option("--events", args->events, "ends after so many [0: never]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("");

  CLI::App* rollback =
      add("rollback", "Publishes an old placement's contents as a new epoch.", Rollback);
  rollback->add_option("EPOCH", args->to_epoch, "the epoch to go back to")
      ->required()
      ->check(CLI::PositiveNumber)
      ->type_name("");
  rollback->add_flag("--pin", args->pin, "and keeps it as it is");

  add("pin", "Keeps the live placement as it is.",
      [](const PlacementArgs& a, VerbContext& c) { return SetPin(a, true, c); });
  add("unpin", "Lets the placement follow the traffic again.",
      [](const PlacementArgs& a, VerbContext& c) { return SetPin(a, false, c); });

  CLI::App* budget =
      add("budget",
          "Sets how much memory the hot neurons may take, at once and until set anew. The rest of "
          "what serve --vram-budget left them goes back to the GPU's driver, without a GPU to the "
          "system; more is taken again the same way, up to that.",
          SetBudget);
  budget->add_option("BYTES", args->bytes, "bytes of hot neurons alone, or with a unit: 24MiB")
      ->required()
      ->type_name("");

  CLI::App* exports =
      add("export", "Writes what was learnt (FILE.gguf) or the hot sets (FILE.gpuidx).", Export);
  exports->add_option("FILE", args->file, "the file to write")->required()->type_name("");
  exports->add_option("--epoch", args->epoch, "of which hot sets [live]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("");
  exports->add_option("--name", args->profile, "the profile's name in the file")->type_name("");

  CLI::App* imports =
      add("import", "Learns from a profile (.gguf) or takes hot sets (.gpuidx).", Import);
  imports->add_option("FILE", args->file, "the file to read")->required()->type_name("");
  imports->add_option("--profile", args->profile, "which profile of the file [the first]")
      ->type_name("");
  imports->add_option("--tokens", args->tokens, "tokens that the profile is worth [500]")
      ->check(CLI::PositiveNumber)
      ->type_name("");
  imports->add_flag("--dry-run", args->dry_run, "tells what hot sets would gain, moves nothing");
}

}  // namespace isotherm::cli
