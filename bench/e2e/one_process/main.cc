// isotherm-bench-local: measures the whole model in one process, on request.
//
// One JSON object a line. stdout first says {"ready":true,"name":..}; then each line of stdin is a
// job and gets one line back, {"error":..} when it failed:
//   {"job":"generate","prompt":[ids],"generate":128,"exact":false}
//     -> {"time_to_first_token_ms":..,"decode_ms":..,"tokens":..,"bytes_per_token":..,..}
//   {"job":"read"} -> {"bytes_per_second":..}, the linear memory read of the same threads
// `isotherm bench` drives it; by hand:
//   echo '{"job":"read"}' | isotherm-bench-local --model model.gguf --threads 2

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/common/read_bandwidth.h"
#include "bench/e2e/one_process/one_process.h"
#include "common/base/exit_code.h"

namespace isotherm::bench {
namespace {

using nlohmann::json;

absl::StatusOr<json> Generate(const json& job, OneProcess& model) {
  OneProcessRun run;
  for (const json& id : job.value("prompt", json::array())) {
    if (!id.is_number_integer()) return absl::InvalidArgumentError("prompt is a list of token ids");
    run.prompt.push_back(id.get<int32_t>());
  }
  run.generated_tokens = job.value("generate", run.generated_tokens);
  run.exact = job.value("exact", false);
  const absl::StatusOr<OneProcessResult> result = model.Run(run);
  if (!result.ok()) return result.status();
  return json{{"time_to_first_token_ms", result->time_to_first_token_ms},
              {"decode_ms", result->decode_ms},
              {"tokens", result->tokens},
              {"bytes_per_token", result->bytes_per_token},
              {"active_share", result->active_share},
              {"us_per_layer_dense", result->us_per_layer_dense},
              {"us_per_layer_neurons", result->us_per_layer_neurons}};
}

json Answer(const std::string& line, OneProcess& model, ThreadPool& pool) {
  const json job = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!job.is_object()) return {{"error", "not a JSON object"}};
  try {
    if (job.value("job", "") == "read")
      return {{"bytes_per_second", LinearReadBytesPerSecond(pool)}};
    const absl::StatusOr<json> answer = Generate(job, model);
    return answer.ok() ? *answer : json{{"error", std::string(answer.status().message())}};
  } catch (const json::exception& error) {  // a field of another type
    return {{"error", error.what()}};
  }
}

int Serve(const std::string& path, int threads) {
  const absl::StatusOr<std::unique_ptr<OneProcess>> model = OneProcess::Create(path, threads);
  if (!model.ok()) {
    std::cout << json{{"error", std::string(model.status().message())}} << std::endl;
    return static_cast<int>(ExitCodeOf(model.status()));
  }
  ThreadPool pool({.num_threads = threads, .name = "read"});
  std::cout << json{{"ready", true}, {"name", "one process"}, {"threads", (*model)->threads()}}
            << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << Answer(line, **model, pool) << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace isotherm::bench

int main(int argc, char** argv) {
  CLI::App app("Measures the whole model in one process: one JSON job a line on stdin.",
               "isotherm-bench-local");
  std::string model;
  int threads = 0;
  app.add_option("--model", model, "GGUF file")->required();
  app.add_option("--threads", threads, "0: allowed cores [0]")->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);
  return isotherm::bench::Serve(model, threads);
}
