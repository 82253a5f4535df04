#include "cli/verbs/models_convert.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/config/paths.h"
#include "cli/ui/progress_bar.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "models/convert/conversion.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

constexpr char kModelsConvertExamples[] = R"(Examples:
  isotherm models convert relu-7b.powerinfer.gguf relu-7b-q4.powerinfer.gguf --type q4_0
  isotherm models convert relu-7b.powerinfer.gguf relu-7b.arena.gguf --arena
  isotherm models convert relu-falcon.gguf relu-falcon.powerinfer.gguf --to pwri --relu
  isotherm models convert relu-7b.powerinfer.gguf relu-7b.gguf --to gguf --drop-predictors

pwri is PowerInfer's layout: a neuron's down vector is a row, and predictors may say which neurons a
token needs. gguf is what llama.cpp writes. --arena puts a neuron's vectors side by side (bundle
order), so that workers compute from the mapped file instead of a copy; without it they are put back. Keys, tokenizer and chat template are kept, and so is the
activation profile that lies beside IN. Norms and biases stay as they are.
OUT appears when it is complete and `models verify` has found it good.)";

struct ConvertArgs {
  std::string in, out, to, type;
  bool arena = false, drop_predictors = false, relu = false, force = false;
};

absl::StatusOr<ConversionOptions> ParseArgs(const ConvertArgs& args, const fs::path& model_dir) {
  constexpr char kHelp[] = "isotherm models convert --help";
  ConversionOptions options{.output_path = args.out,
                            .arena = args.arena,
                            .drop_predictors = args.drop_predictors,
                            .relu = args.relu,
                            .replace = args.force};
  ISOTHERM_ASSIGN_OR_RETURN(const fs::path input, ResolveModel(args.in, model_dir));
  options.input_path = input.string();
  if (args.to == "pwri") {
    options.container = Container::kPowerInfer;
  } else if (args.to == "gguf") {
    options.container = Container::kGguf;
  } else if (!args.to.empty()) {
    return WithTry(
        absl::InvalidArgumentError(absl::StrCat("to: got '", args.to, "', wanted pwri or gguf")),
        kHelp);
  }
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    if (const auto named = DTypeFromName(args.type); named.ok() && *named == type) {
      options.type = type;
    }
  }
  if (!args.type.empty() && !options.type.has_value()) {
    return WithTry(absl::InvalidArgumentError(
                       absl::StrCat("type: got '", args.type, "', wanted f16, bf16, q8_0 or q4_0")),
                   kHelp);
  }
  return options;
}

absl::Status Convert(const ConvertArgs& args, const fs::path& model_dir, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(ConversionOptions options, ParseArgs(args, model_dir));
  std::optional<ProgressBar> bar;
  std::string stage_drawn;
  options.progress = [&](absl::string_view stage, int64_t done, int64_t total) {
    if (!bar.has_value() || stage_drawn != stage) {
      if (bar.has_value()) bar->Finish();
      stage_drawn = std::string(stage);
      bar.emplace(context.console, stage_drawn, total);
    }
    bar->Update(done);
  };
  absl::StatusOr<ConversionReport> report = ConvertModel(options);
  if (report.ok() && bar.has_value()) bar->Finish();
  bar.reset();
  if (absl::IsDataLoss(report.status())) {
    return WithTry(report.status(), absl::StrCat("isotherm models verify ", options.input_path));
  }
  if (ExitCodeOf(report.status()) == ExitCode::kUsage) {
    return WithTry(report.status(), "isotherm models convert --help");
  }
  ISOTHERM_RETURN_IF_ERROR(report.status());
  if (context.json) {
    nlohmann::ordered_json json;
    json["model"] = options.output_path;
    json["bytes"] = report->output_bytes;
    json["profile_copied"] = report->profile_copied;
    json["notes"] = report->notes;
    context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                        << "\n";
    return absl::OkStatus();
  }
  for (const std::string& note : report->notes) PrintNote(context.console, note);
  context.console.out << options.output_path << "  " << FormatBytes(report->output_bytes) << "\n";
  return absl::OkStatus();
}

}  // namespace

void AddModelsConvertVerb(CLI::App& models, std::function<fs::path()> model_dir,
                          VerbContext& context) {
  auto args = std::make_shared<ConvertArgs>();
  CLI::App* verb = models.add_subcommand(
      "convert", "Writes a model in PowerInfer's or the plain GGUF layout, or in another type.");
  verb->footer(kModelsConvertExamples);
  verb->add_option("IN", args->in, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  verb->add_option("OUT", args->out, "file to write")->required()->type_name("");
  verb->add_option("--to", args->to, "layout: pwri or gguf [IN's]")->type_name("");
  verb->add_option("--type", args->type,
                   "type of the matrices: f16, bf16, q8_0 or q4_0 [as they are]")
      ->type_name("");
  verb->add_flag("--arena", args->arena,
                 "neurons in bundle order, for workers to map; PowerInfer cannot read it");
  verb->add_flag("--relu", args->relu,
                 "the model was trained with ReLU, which a plain GGUF file cannot say");
  verb->add_flag("--drop-predictors", args->drop_predictors,
                 "leave the predictors out: every neuron is then computed for every token");
  verb->add_flag("--force", args->force, "replace OUT if it is there");
  verb->callback([args, model_dir = std::move(model_dir), &context] {
    context.status = Convert(*args, model_dir(), context);
  });
}

}  // namespace isotherm::cli
