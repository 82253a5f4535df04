#include "bench/e2e/one_process/one_process.h"

#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm::bench {
namespace {

double MillisSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<OneProcess>> OneProcess::Create(const std::string& model_path,
                                                               int threads) {
  std::unique_ptr<OneProcess> out(new OneProcess());
  ISOTHERM_ASSIGN_OR_RETURN(out->model_, ModelFile::Open(model_path));
  ISOTHERM_ASSIGN_OR_RETURN(out->neurons_, gpu::OwnedNeurons::Load(*out->model_));
  out->pages_.resize(static_cast<size_t>(CeilDiv<int64_t>(kMaxTokens, gpu::kPageSize)));
  std::iota(out->pages_.begin(), out->pages_.end(), 0);
  ISOTHERM_ASSIGN_OR_RETURN(
      out->device_,
      gpu::HostDevice::Create(*out->model_, {.num_threads = threads,
                                             .kv_pages = static_cast<int32_t>(out->pages_.size()),
                                             .max_rows = kMaxRows}));
  return out;
}

absl::StatusOr<int32_t> OneProcess::Step(const std::vector<int32_t>& tokens, int64_t first,
                                         bool exact, gpu::SamplingState& sampling) {
  std::vector<gpu::DeviceRow> rows;
  for (size_t i = 0; i < tokens.size(); ++i) {
    rows.push_back({.token = tokens[i],
                    .position = static_cast<int32_t>(first) + static_cast<int32_t>(i),
                    .pages = pages_,
                    .exact = exact,
                    .sampling = i + 1 == tokens.size() ? &sampling : nullptr});
  }
  ISOTHERM_RETURN_IF_ERROR(
      device_->RunStep({.step_id = ++step_id_, .exact = exact, .trace = true, .rows = rows},
                       {.arena = neurons_.get()}, &output_));
  if (output_.owed_hash != output_.work_hash) {
    return absl::InternalError("the step did not compute what it owed");
  }
  return output_.samples.front().token;
}

double OneProcess::BytesPerToken(int64_t gates, int64_t open) const {
  const BundleLayout& layout = model_->bundle_layout();
  return static_cast<double>(device_->dense_bytes()) +
         static_cast<double>(layout.row_bytes) * static_cast<double>(gates + 2 * open);
}

absl::StatusOr<OneProcessResult> OneProcess::Run(const OneProcessRun& run) {
  const int64_t limit = std::min(kMaxTokens, model_->config().context_length);
  const auto prompt_tokens = static_cast<int64_t>(run.prompt.size());
  if (run.prompt.empty() || run.generated_tokens < 1 || run.generated_tokens > limit ||
      prompt_tokens + run.generated_tokens > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", prompt_tokens, " and ", run.generated_tokens,
                     " generated tokens; at least 1 each and ", limit, " together"));
  }
  gpu::SamplingState greedy({.params = {.temperature = 0}});
  OneProcessResult result{.tokens = run.generated_tokens};
  auto start = std::chrono::steady_clock::now();
  int32_t token = 0;
  for (int64_t at = 0; at < prompt_tokens; at += kMaxRows) {
    const int64_t end = std::min<int64_t>(prompt_tokens, at + kMaxRows);
    const std::vector<int32_t> piece(run.prompt.begin() + at, run.prompt.begin() + end);
    ISOTHERM_ASSIGN_OR_RETURN(token, Step(piece, at, run.exact, greedy));
  }
  result.time_to_first_token_ms = MillisSince(start);

  start = std::chrono::steady_clock::now();
  int64_t active = 0, open = 0, layers = 0;
  double dense_us = 0, neurons_us = 0;
  for (int64_t i = 1; i < run.generated_tokens; ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(token, Step({token}, prompt_tokens + i - 1, run.exact, greedy));
    active += output_.active_neurons;
    open += output_.open_neurons;
    for (const LayerTiming& timing : output_.timings) {
      dense_us += static_cast<double>(timing.attention_us);
      neurons_us += static_cast<double>(timing.gpu_us);
      ++layers;
    }
  }
  result.decode_ms = MillisSince(start);
  const auto steps = std::max<int64_t>(1, run.generated_tokens - 1);
  const ModelConfig& config = model_->config();
  result.bytes_per_token = BytesPerToken(active / steps, open / steps);
  result.active_share =
      static_cast<double>(active) / static_cast<double>(steps * config.num_layers * config.ffn_dim);
  result.us_per_layer_dense = dense_us / static_cast<double>(std::max<int64_t>(1, layers));
  result.us_per_layer_neurons = neurons_us / static_cast<double>(std::max<int64_t>(1, layers));
  return result;
}

}  // namespace isotherm::bench
