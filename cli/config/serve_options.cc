#include "cli/config/serve_options.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/config/paths.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

absl::Status BadValue(absl::string_view key, const OptionValue& value, absl::string_view wanted) {
  const std::string from =
      absl::StartsWith(value.origin, "--") ? "" : absl::StrCat(" (from ", value.origin, ")");
  return WithTry(WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                                  key, ": got '", value.text, "'", from, ", wanted ", wanted)),
                              ExitCode::kUsage),
                 "isotherm serve --help");
}

absl::StatusOr<int64_t> ParseCount(const LayeredOptions& values, absl::string_view key,
                                   int64_t least, int64_t most) {
  const OptionValue& value = values.at(key);
  if (value.text == "auto" && least == 0) return 0;
  const absl::StatusOr<int64_t> number = ParseBytes(value.text);  // 32K is a count, too
  if (!number.ok() || *number < least || *number > most) {
    return BadValue(key, value,
                    absl::StrCat("a whole number from ", least == 0 ? 1 : least, " to ", most,
                                 least == 0 ? ", or auto" : ""));
  }
  return *number;
}

absl::StatusOr<std::string> ParseChoice(const LayeredOptions& values, absl::string_view key,
                                        const std::vector<std::string>& choices) {
  const OptionValue& value = values.at(key);
  if (std::find(choices.begin(), choices.end(), value.text) != choices.end()) return value.text;
  return BadValue(key, value, absl::StrCat("one of ", absl::StrJoin(choices, ", ")));
}

absl::StatusOr<int64_t> ParseBudget(const LayeredOptions& values) {
  const OptionValue& value = values.at("vram-budget");
  if (value.text == "auto") return -1;
  double gib = 0;
  if (absl::SimpleAtod(value.text, &gib)) {  // a bare number is GiB
    if (gib >= 0 && gib < 1e6) return static_cast<int64_t>(gib * 1073741824.0);
  } else if (const auto bytes = ParseBytes(value.text); bytes.ok()) {
    return *bytes;
  }
  return BadValue("vram-budget", value, "auto, or a size such as 8GiB, 512MiB (a bare 8 is 8 GiB)");
}

absl::Status CheckListen(const OptionValue& value) {
  const absl::string_view text = value.text;
  if (absl::StartsWith(text, "unix:/")) return absl::OkStatus();
  const size_t colon = text.rfind(':');
  int port = -1;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(text.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return BadValue("grpc-listen", value, "HOST:PORT or unix:/PATH");
  }
  const absl::string_view host = text.substr(0, colon);
  if (host != "localhost" && host != "[::1]" && !absl::StartsWith(host, "127.")) {
    return BadValue("grpc-listen", value,
                    "a loopback address: the API has no keys yet and would be open to the network");
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<OptionSpec>& ServeOptionSpecs() {
  static const std::vector<OptionSpec> specs = {
      {"model", "", "model file, or a name in --model-dir"},
      {"grpc-listen", "127.0.0.1:8001",
       "where the gateway listens: HOST:PORT (port 0: any free one)"},
      {"alias", "", "name clients may use for the model besides its file name"},
      {"context", "auto", "tokens of context of one request; auto: what fits"},
      {"parallel", "4", "requests that run at once"},
      {"max-queue", "256", "requests that may wait; further ones are refused"},
      {"device", "auto",
       "where hot neurons are computed: auto (a GPU if there is one), cuda or cpu"},
      {"vram-budget", "auto",
       "GPU memory to take in all: 8GiB, 8; auto: what is free less 512 MiB. Without a GPU: size "
       "of "
       "the hot neurons, auto: a quarter of them. `isotherm placement budget` changes what hot "
       "neurons take of it while requests run"},
      {"max-rows", "auto", "tokens of a step: more speeds up prompts and takes GPU memory"},
      {"predictor-type", "8bit", "on the GPU: 8bit (smaller) or stored (as in the file)"},
      {"streamed-share", "auto",
       "share of the cold neurons that the GPU reads over PCIe, 0 to 1; auto: adapted"},
      {"threads", "auto",
       "threads of each worker; auto: all cores for the gpu_worker without a GPU, one less for the "
       "cpu_worker"},
      {"transport", "auto", "between the workers: shm (shared memory) or grpc; auto: shm"},
      {"arena", "auto",
       "neurons of a bundle-ordered model file: map (in place) or copy; auto: map on tmpfs"},
      {"activation", "", "relu, silu or gelu instead of what the model file says"},
      {"sparse-threshold", "", "predictor threshold instead of the model's"},
      {"chat-template", "",
       "template file, or chatml, llama2, alpaca, plain, instead of the model's"},
      {"profile", "", "activation profile that the first placement is made for, such as chat"},
      {"follow", "on", "on: neurons move with the traffic by themselves; off: only when asked"},
      {"kv-floor", "all",
       "without a GPU: memory of KV pages that is always there; what requests need beyond it hot "
       "neurons lend. all: none is lent"},
      {"state-dir", "", "plans and sockets (default: $XDG_STATE_HOME/isotherm)"},
      {"model-dir", "",
       "where model names are looked up (default: $XDG_DATA_HOME/isotherm/models)"},
      {"drain-timeout", "300s", "how long running requests may go on after SIGTERM"},
      {"log-level", "info", "trace, debug, info, warn, error or off"}};
  return specs;
}

absl::StatusOr<ServeOptions> ParseServeOptions(const LayeredOptions& values) {
  ServeOptions options;
  options.model = values.at("model").text;
  ISOTHERM_RETURN_IF_ERROR(CheckListen(values.at("grpc-listen")));
  options.grpc_listen = values.at("grpc-listen").text;
  options.alias = values.at("alias").text;
  ISOTHERM_ASSIGN_OR_RETURN(options.context, ParseCount(values, "context", 0, int64_t{1} << 24));
  ISOTHERM_ASSIGN_OR_RETURN(options.parallel, ParseCount(values, "parallel", 1, 256));
  ISOTHERM_ASSIGN_OR_RETURN(options.max_queue, ParseCount(values, "max-queue", 1, 65536));
  ISOTHERM_ASSIGN_OR_RETURN(options.threads, ParseCount(values, "threads", 0, 1024));
  ISOTHERM_ASSIGN_OR_RETURN(options.vram_budget, ParseBudget(values));
  ISOTHERM_ASSIGN_OR_RETURN(options.device, ParseChoice(values, "device", {"auto", "cuda", "cpu"}));
  ISOTHERM_ASSIGN_OR_RETURN(options.max_rows, ParseCount(values, "max-rows", 0, 4096));
  ISOTHERM_ASSIGN_OR_RETURN(options.predictor_type,
                            ParseChoice(values, "predictor-type", {"8bit", "stored"}));
  if (const OptionValue& share = values.at("streamed-share"); share.text != "auto") {
    if (!absl::SimpleAtod(share.text, &options.streamed_share) || options.streamed_share < 0 ||
        options.streamed_share > 1) {
      return BadValue("streamed-share", share, "auto, or a number from 0 to 1");
    }
  }
  ISOTHERM_ASSIGN_OR_RETURN(options.transport,
                            ParseChoice(values, "transport", {"auto", "shm", "grpc"}));
  if (options.transport == "auto") options.transport = "shm";
  ISOTHERM_ASSIGN_OR_RETURN(options.arena, ParseChoice(values, "arena", {"auto", "map", "copy"}));
  if (!values.at("activation").text.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(options.activation,
                              ParseChoice(values, "activation", {"relu", "silu", "gelu"}));
  }
  options.sparse_threshold = values.at("sparse-threshold").text;
  double threshold = 0;
  if (!options.sparse_threshold.empty() &&
      !absl::SimpleAtod(options.sparse_threshold, &threshold)) {
    return BadValue("sparse-threshold", values.at("sparse-threshold"), "a number");
  }
  options.chat_template = values.at("chat-template").text;
  options.profile = values.at("profile").text;
  ISOTHERM_ASSIGN_OR_RETURN(options.follow, ParseChoice(values, "follow", {"on", "off"}));
  options.kv_floor = values.at("kv-floor").text;
  if (options.kv_floor != "all" && !ParseBytes(options.kv_floor).ok()) {
    return BadValue("kv-floor", values.at("kv-floor"), "all, or a size such as 64MiB");
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      options.log_level,
      ParseChoice(values, "log-level", {"trace", "debug", "info", "warn", "error", "off"}));
  const absl::StatusOr<std::chrono::milliseconds> drain =
      ParseDuration(values.at("drain-timeout").text);
  if (!drain.ok() || *drain > std::chrono::hours(24)) {
    return BadValue("drain-timeout", values.at("drain-timeout"), "a duration such as 30s, 5m");
  }
  options.drain_timeout = *drain;
  const std::string& state_dir = values.at("state-dir").text;
  options.state_dir = state_dir.empty() ? DefaultStateDir() : std::filesystem::path(state_dir);
  const std::string& model_dir = values.at("model-dir").text;
  options.model_dir = model_dir.empty() ? DefaultModelDir() : std::filesystem::path(model_dir);
  return options;
}

}  // namespace isotherm::cli
