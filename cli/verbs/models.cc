#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/config/layered_options.h"
#include "cli/config/paths.h"
#include "cli/models/base_download.h"
#include "cli/ui/progress_bar.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/models_convert.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "models/build/smollm2_relu.h"
#include "models/inspect/inspect.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

constexpr char kModelsExamples[] = R"(Examples:
  isotherm models build smollm2-relu                  fetch the base, merge the adapter: Q8_0
  isotherm models build smollm2-relu --format f16 --base SmolLM2-135M-Instruct.Q4_1.gguf
  isotherm models ls
  isotherm models inspect smollm2-relu
  isotherm models verify model.gguf
  isotherm models convert model.gguf model-q4.gguf --type q4_0
  isotherm models convert --help                      all that can be converted)";
constexpr char kAdapter[] = "smollm2-135m-relu.adapter.gguf";

struct ModelsArgs {
  std::string model_dir;
  std::string name;
  std::string format = "q8_0";
  std::string base;
  std::string adapter;
  std::string out;
  bool force = false;
};

fs::path ModelDir(const ModelsArgs& args) {
  if (!args.model_dir.empty()) return args.model_dir;
  if (const auto env = RealEnv("ISOTHERM_MODEL_DIR"); env.has_value()) return *env;
  return DefaultModelDir();
}

absl::StatusOr<DType> ParseFormat(const std::string& format) {
  if (format == "q8_0") return DType::kQ8_0;
  if (format == "f16") return DType::kF16;
  if (format == "q4_0") return DType::kQ4_0;
  return WithTry(absl::InvalidArgumentError(
                     absl::StrCat("format: got '", format, "', wanted q8_0, f16 or q4_0")),
                 "isotherm models build smollm2-relu --format q8_0");
}

absl::StatusOr<fs::path> FindAdapter(const ModelsArgs& args) {
  if (!args.adapter.empty()) return fs::path(args.adapter);
  const fs::path program = ProgramDir();
  for (const fs::path& dir :
       {program / "../share/isotherm", program / "../../assets", fs::path(ISOTHERM_ASSETS_DIR)}) {
    std::error_code error;
    if (fs::is_regular_file(dir / kAdapter, error)) return fs::canonical(dir / kAdapter, error);
  }
  return WithTry(WithExitCode(absl::NotFoundError(absl::StrCat("the adapter ", kAdapter,
                                                               " is not beside this program")),
                              ExitCode::kBadData),
                 "--adapter FILE");
}

absl::Status Build(const ModelsArgs& args, VerbContext& context) {
  if (args.name != "smollm2-relu") {
    return WithTry(absl::InvalidArgumentError(
                       absl::StrCat("no recipe for '", args.name, "'; there is smollm2-relu")),
                   "isotherm models build smollm2-relu");
  }
  BuildOptions options;
  ISOTHERM_ASSIGN_OR_RETURN(options.format, ParseFormat(args.format));
  ISOTHERM_ASSIGN_OR_RETURN(const fs::path adapter, FindAdapter(args));
  options.adapter_path = adapter.string();
  const fs::path out = args.out.empty()
                           ? ModelDir(args) / absl::StrCat("smollm2-relu-", args.format, ".gguf")
                           : fs::path(args.out);
  options.output_path = out.string();
  std::error_code error;
  if (fs::is_regular_file(out, error) && !args.force) {
    PrintNote(context.console,
              absl::StrCat("already built: ", out.string(), " (--force builds it again)"));
  } else {
    fs::create_directories(fs::absolute(out, error).parent_path(), error);
    options.base_path = args.base;
    if (args.base.empty()) {
      ISOTHERM_ASSIGN_OR_RETURN(const fs::path base,
                                ObtainSmollm2Base(DefaultCacheDir(), context.console));
      options.base_path = base.string();
    }
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
    const absl::Status built = BuildSmollm2Relu(options);
    if (built.ok() && bar.has_value()) bar->Finish();
    bar.reset();
    if (!built.ok()) {
      return WithTry(built, args.base.empty()
                                ? absl::StrCat("rm -r ", DefaultCacheDir().string(),
                                               ", then again: the base may be damaged")
                                : "without --base: the right base is fetched");
    }
  }
  if (context.json) {
    nlohmann::ordered_json json;
    json["model"] = out.string();
    json["bytes"] = static_cast<int64_t>(fs::file_size(out, error));
    context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                        << "\n";
  } else {
    context.console.out << out.string() << "\n";
  }
  return absl::OkStatus();
}

absl::Status List(const ModelsArgs& args, VerbContext& context) {
  const fs::path dir = ModelDir(args);
  const std::vector<fs::path> models = ListModels(dir);
  if (context.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const fs::path& model : models) {
      std::error_code error;
      json.push_back({{"name", model.stem().string()},
                      {"path", model.string()},
                      {"bytes", static_cast<int64_t>(fs::file_size(model, error))}});
    }
    context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                        << "\n";
    return absl::OkStatus();
  }
  for (const fs::path& model : models) {
    std::error_code error;
    context.console.out << absl::StrFormat(
        "%-32s %10s\n", model.stem().string(),
        FormatBytes(static_cast<int64_t>(fs::file_size(model, error))));
  }
  if (models.empty()) {
    PrintNote(context.console, absl::StrCat("no models in ", dir.string(),
                                            "; make one: isotherm models build smollm2-relu"));
  }
  return absl::OkStatus();
}

absl::Status InspectModel(const ModelsArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const fs::path model, ResolveModel(args.name, ModelDir(args)));
  ISOTHERM_ASSIGN_OR_RETURN(const ModelSummary summary, Inspect(model.string()));
  std::string text = context.json ? ToJson(summary) : ToText(summary);
  if (text.empty() || text.back() != '\n') text.push_back('\n');
  context.console.out << text;
  return absl::OkStatus();
}

absl::Status VerifyModel(const ModelsArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const fs::path model, ResolveModel(args.name, ModelDir(args)));
  std::optional<ProgressBar> bar;
  ISOTHERM_RETURN_IF_ERROR(Verify(model.string(), [&](int64_t done, int64_t total) {
    if (!bar.has_value()) bar.emplace(context.console, "verifying", total);
    bar->Update(done);
  }));
  if (bar.has_value()) bar->Finish();
  if (context.json) {
    nlohmann::ordered_json json;
    json["model"] = model.string();
    json["ok"] = true;
    context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                        << "\n";
  } else {
    context.console.out << model.string() << ": good\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddModelsVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<ModelsArgs>();
  CLI::App* verb =
      app.add_subcommand("models", "Lists, builds, inspects, verifies and converts model files.");
  verb->footer(kModelsExamples);
  verb->require_subcommand(1);
  verb->fallthrough();
  verb->add_option("--model-dir", args->model_dir,
                   "where models lie (default: $XDG_DATA_HOME/isotherm/models)")
      ->type_name("");

  CLI::App* list = verb->add_subcommand("ls", "The models in --model-dir.");
  list->callback([args, &context] { context.status = List(*args, context); });

  CLI::App* build = verb->add_subcommand("build", "Makes a shipped model from its public base.");
  build->add_option("NAME", args->name, "smollm2-relu")->required()->type_name("");
  build->add_option("--format", args->format, "type of the weights: q8_0, f16 or q4_0 [q8_0]")
      ->type_name("");
  build->add_option("--base", args->base, "base weights already on this machine")
      ->type_name("FILE");
  build->add_option("--adapter", args->adapter, "another adapter than the shipped one")
      ->type_name("FILE");
  build->add_option("--out", args->out, "file to write [MODEL_DIR/NAME-FORMAT.gguf]")
      ->type_name("FILE");
  build->add_flag("--force", args->force, "build it even if it is there");
  build->callback([args, &context] { context.status = Build(*args, context); });

  CLI::App* inspect = verb->add_subcommand("inspect", "What a model file is.");
  inspect->add_option("MODEL", args->name, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  inspect->callback([args, &context] { context.status = InspectModel(*args, context); });

  CLI::App* verify = verb->add_subcommand("verify", "Reads and checks every tensor of a model.");
  verify->add_option("MODEL", args->name, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  verify->callback([args, &context] { context.status = VerifyModel(*args, context); });

  AddModelsConvertVerb(
      *verb, [args] { return ModelDir(*args); }, context);
}

}  // namespace isotherm::cli
