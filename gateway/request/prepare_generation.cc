#include "gateway/request/prepare_generation.h"

#include <utility>

#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "gateway/request/validate.h"

namespace isotherm {
namespace {

absl::StatusOr<std::vector<TokenId>> PromptTokens(const GenerateParams& params,
                                                  const TextModel& model) {
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&params.input)) return *tokens;
  if (const auto* chat = std::get_if<ChatInput>(&params.input)) return TokenizeChat(*chat, model);
  const TextSegment segment{.text = std::get<std::string>(params.input)};
  absl::StatusOr<std::vector<TokenId>> tokens = model.Tokenize({&segment, 1}, true);
  if (!tokens.ok()) return AsInvalidField(tokens.status(), "prompt");
  return tokens;
}

}  // namespace

absl::Status AsInvalidField(absl::Status status, absl::string_view field) {
  if (ErrorReasonOf(status).has_value()) return status;
  return WithErrorReason(absl::InvalidArgumentError(status.message()),
                         {.reason = "INVALID_VALUE", .field = std::string(field)});
}

absl::StatusOr<std::vector<TokenId>> TokenizeChat(const ChatInput& chat, const TextModel& model) {
  absl::StatusOr<std::vector<TextSegment>> segments = model.RenderChat(chat);
  if (!segments.ok()) return AsInvalidField(segments.status(), "chat.messages");
  absl::StatusOr<std::vector<TokenId>> tokens = model.Tokenize(*segments, true);
  if (!tokens.ok()) return AsInvalidField(tokens.status(), "chat.messages");
  return tokens;
}

absl::StatusOr<PreparedGeneration> PrepareGeneration(const GenerateParams& params,
                                                     const TextModel& model, int64_t random_seed,
                                                     Clock::TimePoint deadline) {
  ISOTHERM_RETURN_IF_ERROR(Validate(params, model.facts().vocab_size));
  PreparedGeneration out;
  GenerationRequest& request = out.request;
  request.request_id = params.request_id;
  ISOTHERM_ASSIGN_OR_RETURN(request.prompt, PromptTokens(params, model));
  request.sampling = ResolveSampling(params.sampling, random_seed);
  request.stop_token_ids = params.stop.stop_token_ids;
  if (!params.stop.ignore_eos) {
    request.stop_token_ids.insert(request.stop_token_ids.end(), model.stop_ids().begin(),
                                  model.stop_ids().end());
  }
  request.max_tokens = params.stop.max_tokens;
  request.min_tokens = params.stop.min_tokens.value_or(0);
  request.num_choices = params.sampling.n.value_or(1);
  request.top_logprobs = params.output.top_logprobs.value_or(-1);
  request.exact = params.exact;
  request.layer_timings = params.output.layer_timings;
  request.priority = params.priority;
  request.deadline = deadline;

  GenerationOptions& options = out.options;
  options.request_id = params.request_id;
  options.num_choices = request.num_choices;
  options.min_tokens = request.min_tokens;
  options.stops = params.stop.stop;
  options.include_stop_in_output = params.stop.include_stop_in_output;
  options.return_text = params.output.return_text;
  options.return_token_ids = params.output.return_token_ids;
  options.return_logprobs = params.output.top_logprobs.has_value();
  options.progress = params.output.progress;
  if (params.output.echo) {
    const auto* prompt = std::get_if<std::string>(&params.input);
    options.echo = prompt != nullptr ? *prompt : model.Decode(request.prompt);
  }
  return out;
}

}  // namespace isotherm
