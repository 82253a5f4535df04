// isotherm-bench-gpu: decode, batch and prefill of one model on one GPU and the cores beside it.
//
//   isotherm-bench-gpu --model 7b.gguf --profile 7b.profile.gguf --vram-budget 8GiB --tokens 256
//   isotherm-bench-gpu --model 7b.gguf ... --prefill 73,512,2048 --max-rows 2048 --context 2112
// One JSON line for each figure. See bench/README.md.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "bench/e2e/gpu/decode_rig.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "common/process/service_process.h"

namespace isotherm::bench {
namespace {

using nlohmann::ordered_json;

constexpr int kWarmUp = 32;
constexpr int kTraceEvery = 16;

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

struct Flags {
  RigOptions rig;
  std::string budget = "auto";
  std::string name;
  int tokens = 256;
  int repeats = 5;
  std::vector<int> prefill;
  std::vector<int> batches = {1};
};

ordered_json Describe(const DecodeRig& rig, const Flags& flags) {
  const gpu::DeviceInfo info = rig.device_info();
  int64_t hot = 0;
  for (const LayerPlacement& layer : rig.plan().layers) hot += layer.num_hot;
  const auto mib = [](int64_t bytes) {
    return std::round(static_cast<double>(bytes) / 10485.76) / 100;
  };
  return {{"name", flags.name.empty() ? rig.config().name : flags.name},
          {"device", info.name},
          {"cpu_threads", flags.rig.cpu_threads},
          {"budget_mib", mib(flags.rig.vram_budget)},
          {"vram_mib",
           {{"process", mib(info.memory.process)},
            {"context", mib(info.memory.context)},
            {"dense", mib(info.memory.dense)},
            {"head", mib(info.memory.head)},
            {"predictor", mib(info.memory.predictor)},
            {"kv", mib(info.memory.kv)},
            {"workspace", mib(info.memory.workspace)},
            {"tables", mib(info.memory.tables)},
            {"hot_pool", mib(info.memory.hot_pool)}}},
          {"hot_share", static_cast<double>(hot) / static_cast<double>(rig.layout().num_neurons *
                                                                       rig.layout().num_layers)}};
}

// Means of the traced layers, microseconds, and how the cold path spreads.
ordered_json Breakdown(const std::vector<LayerTiming>& timings) {
  LayerTiming sum;
  for (const LayerTiming& t : timings) {
    sum.attention_us += t.attention_us;
    sum.predict_us += t.predict_us;
    sum.gpu_us += t.gpu_us;
    sum.cpu_us += t.cpu_us;
    sum.streamed_us += t.streamed_us;
    sum.wait_us += t.wait_us;
    sum.merge_us += t.merge_us;
    sum.active_neurons += t.active_neurons;
    sum.hot_neurons += t.hot_neurons;
  }
  const auto mean = [&](float value) {
    return timings.empty() ? 0.0
                           : std::round(10.0 * static_cast<double>(value) /
                                        static_cast<double>(timings.size())) /
                                 10;
  };
  const auto spread = [&](float LayerTiming::*what) {
    std::vector<double> values;
    for (const LayerTiming& t : timings) values.push_back(static_cast<double>(t.*what));
    ordered_json out = ordered_json::array();
    for (const double share : {0.1, 0.5, 0.9})
      out.push_back(std::round(10 * Percentile(values, share)) / 10);
    return out;
  };
  return {{"attention", mean(sum.attention_us)},
          {"predict", mean(sum.predict_us)},
          {"hot", mean(sum.gpu_us)},
          {"cold_cpu", mean(sum.cpu_us)},
          {"cold_pcie", mean(sum.streamed_us)},
          {"wait", mean(sum.wait_us)},
          {"merge", mean(sum.merge_us)},
          {"active", mean(static_cast<float>(sum.active_neurons))},
          {"active_hot", mean(static_cast<float>(sum.hot_neurons))},
          {"p10_p50_p90",
           {{"cold_cpu", spread(&LayerTiming::cpu_us)},
            {"cold_pcie", spread(&LayerTiming::streamed_us)},
            {"wait", spread(&LayerTiming::wait_us)}}}};
}

absl::Status MeasureDecode(DecodeRig& rig, const Flags& flags, int32_t sequences) {
  std::vector<double> rates, step_us;
  std::vector<LayerTiming> timings;
  int64_t active = 0, hot = 0, steps = 0, all_steps = 0;
  ISOTHERM_ASSIGN_OR_RETURN(const uint64_t read_before, rig.ReadByDevice());
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    rig.Restart();
    for (int i = 0; i < kWarmUp; ++i)
      ISOTHERM_RETURN_IF_ERROR(rig.Decode(sequences, false, i + 1 == kWarmUp).status());
    all_steps += kWarmUp + flags.tokens;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < flags.tokens; ++i) {
      const std::optional<bool> then =
          i + 1 < flags.tokens ? std::optional<bool>((i + 1) % kTraceEvery == 0) : std::nullopt;
      ISOTHERM_ASSIGN_OR_RETURN(StepRun run, rig.Decode(sequences, i % kTraceEvery == 0, then));
      step_us.push_back(run.us);
      active += run.active;
      hot += run.hot;
      ++steps;
      timings.insert(timings.end(), run.timings.begin(), run.timings.end());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    rates.push_back(sequences * flags.tokens / took.count());
  }
  ordered_json line = Describe(rig, flags);
  line["figure"] = "decode";
  line["sequences"] = sequences;
  line["tokens_per_second"] = {{"median", Percentile(rates, 0.5)},
                               {"low", Percentile(rates, 0)},
                               {"high", Percentile(rates, 1)}};
  line["step_us"] = {{"p50", Percentile(step_us, 0.5)}, {"p99", Percentile(step_us, 0.99)}};
  line["layer_us"] = Breakdown(timings);
  const double cold = static_cast<double>(active - hot) / static_cast<double>(steps);
  line["active_share"] = static_cast<double>(active) / static_cast<double>(steps) / sequences /
                         static_cast<double>(rig.layout().num_neurons * rig.layout().num_layers);
  line["hit_share"] = static_cast<double>(hot) / static_cast<double>(std::max<int64_t>(1, active));
  // Of all rows: with several, one bundle serves those that need it.
  const double cold_gb = cold * static_cast<double>(rig.layout().bundle_bytes) * 1e-9;
  line["cold_gb_per_step"] = cold_gb;
  ISOTHERM_ASSIGN_OR_RETURN(const uint64_t read_after, rig.ReadByDevice());
  const double pcie_gb =
      static_cast<double>(read_after - read_before) * 1e-9 / static_cast<double>(all_steps);
  line["pcie_gb_per_step"] = pcie_gb;
  if (sequences == 1 && !timings.empty()) {
    double cpu_us = 0, pcie_us = 0;  // of a step
    for (const LayerTiming& t : timings) {
      cpu_us += static_cast<double>(t.cpu_us);
      pcie_us += static_cast<double>(t.streamed_us);
    }
    const double traced_steps =
        static_cast<double>(timings.size()) / static_cast<double>(rig.layout().num_layers);
    if (cpu_us > 0) line["cpu_gb_s"] = (cold_gb - pcie_gb) * traced_steps / (cpu_us * 1e-6);
    if (pcie_us > 0) line["pcie_gb_s"] = pcie_gb * traced_steps / (pcie_us * 1e-6);
  }
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

absl::Status MeasurePrefill(DecodeRig& rig, const Flags& flags, int32_t tokens) {
  std::vector<double> rates;
  for (int repeat = 0; repeat < flags.repeats + 1; ++repeat) {
    ISOTHERM_ASSIGN_OR_RETURN(const StepRun run, rig.Prefill(tokens, false));
    if (repeat > 0) rates.push_back(tokens / (run.us * 1e-6));  // the first one warms up
  }
  ISOTHERM_ASSIGN_OR_RETURN(const uint64_t read_before, rig.ReadByDevice());
  ISOTHERM_ASSIGN_OR_RETURN(const StepRun traced, rig.Prefill(tokens, true));
  ISOTHERM_ASSIGN_OR_RETURN(const uint64_t read_after, rig.ReadByDevice());
  ordered_json line = Describe(rig, flags);
  line["figure"] = "prefill";
  line["tokens"] = tokens;
  line["layer_us"] = Breakdown(traced.timings);
  line["traced_us"] = traced.us;
  line["pcie_gb"] = static_cast<double>(read_after - read_before) * 1e-9;
  line["tokens_per_second"] = {{"median", Percentile(rates, 0.5)},
                               {"low", Percentile(rates, 0)},
                               {"high", Percentile(rates, 1)}};
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

absl::Status Run(Flags flags) {
  if (flags.budget != "auto") {
    ISOTHERM_ASSIGN_OR_RETURN(flags.rig.vram_budget, ParseBytes(flags.budget));
  }
  flags.rig.sequences = *std::max_element(flags.batches.begin(), flags.batches.end());
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<DecodeRig> rig, DecodeRig::Create(flags.rig));
  std::cerr << "loaded: " << Describe(*rig, flags).dump() << std::endl;
  if (flags.tokens > 0) {
    for (const int sequences : flags.batches)
      ISOTHERM_RETURN_IF_ERROR(MeasureDecode(*rig, flags, sequences));
  }
  for (const int tokens : flags.prefill)
    ISOTHERM_RETURN_IF_ERROR(MeasurePrefill(*rig, flags, tokens));
  return absl::OkStatus();
}

}  // namespace
}  // namespace isotherm::bench

int main(int argc, char** argv) {
  isotherm::bench::Flags flags;
  CLI::App app("Decode, batch and prefill speed of a model on this machine's GPU and cores.",
               "isotherm-bench-gpu");
  // The last of several counts, so that a script can override its own rows.
  app.add_option("--model", flags.rig.model, "GGUF file")->required();
  app.add_option("--name", flags.name, "what the result lines are called");
  app.add_option("--profile", flags.rig.profile,
                 "activation profile that the hot set is solved for");
  app.add_option("--device", flags.rig.device, "auto, cuda or cpu")
      ->capture_default_str()
      ->take_last();
  app.add_option("--vram-budget", flags.budget, "bytes, such as 8GiB")
      ->capture_default_str()
      ->take_last();
  app.add_option("--context", flags.rig.context, "tokens of a sequence")->capture_default_str();
  app.add_option("--max-rows", flags.rig.max_rows, "rows of a step")
      ->capture_default_str()
      ->take_last();
  app.add_option("--product-rows", flags.rig.product_rows,
                 "steps of so many rows on are matrix products; 0: chosen")
      ->capture_default_str();
  app.add_option("--cpu-threads", flags.rig.cpu_threads, "for cold neurons")
      ->capture_default_str()
      ->take_last();
  app.add_option("--streamed-share", flags.rig.streamed_share,
                 "of cold neurons, read over PCIe; -1: adapted")
      ->capture_default_str();
  app.add_flag("!--no-early-launch", flags.rig.early_launch,
               "each kernel waits for the end of the one ahead");
  app.add_flag("!--no-queue-ahead", flags.rig.queue_ahead,
               "each step is begun once the one ahead has ended");
  app.add_flag("--stored-predictor", flags.rig.stored_predictor, "keep the predictor's type");
  app.add_option("--tokens", flags.tokens, "decoded in each repeat; 0: none")
      ->capture_default_str()
      ->take_last();
  app.add_option("--repeats", flags.repeats, "counted runs")->capture_default_str()->take_last();
  app.add_option("--batch", flags.batches, "sequences decoded at once, such as 1,4")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--prefill", flags.prefill, "prompt lengths, such as 73,512")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = isotherm::InitLogging("bench-gpu", "warn"); !status.ok()) {
    std::cerr << status.message() << "\n";
    return static_cast<int>(isotherm::ExitCode::kUsage);
  }
  return isotherm::ExitWith(isotherm::bench::Run(flags));
}
