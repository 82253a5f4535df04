#include "gateway/request/validate.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

constexpr int32_t kMaxChoices = 8;
constexpr size_t kMaxMessages = 1024;
constexpr size_t kMaxTemplateKwargs = 16;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxStopTokens = 64;
constexpr size_t kMaxLogitBias = 1024;
constexpr int32_t kMaxTopLogprobs = 20;
constexpr size_t kMaxRequestIdBytes = 128;
constexpr std::array<absl::string_view, 6> kRoles = {"system",    "developer", "user",
                                                     "assistant", "tool",      "function"};

absl::Status Invalid(absl::string_view field, absl::string_view message) {
  return WithErrorReason(absl::InvalidArgumentError(absl::StrCat(field, " ", message)),
                         {.reason = "INVALID_VALUE", .field = std::string(field)});
}

// Also refuses NaN.
template <typename T>
absl::Status InRange(absl::string_view field, std::optional<T> value, T low, T high) {
  if (!value.has_value() || (*value >= low && *value <= high)) return absl::OkStatus();
  return Invalid(field, absl::StrCat("is ", *value, "; wanted ", low, " to ", high));
}

absl::Status AtMost(absl::string_view field, size_t got, size_t limit) {
  if (got <= limit) return absl::OkStatus();
  return Invalid(field, absl::StrCat("has ", got, " entries; at most ", limit));
}

absl::Status IsToken(absl::string_view field, TokenId token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return absl::OkStatus();
  return Invalid(field,
                 absl::StrCat("holds token ", token, "; the vocabulary has 0 to ", vocab_size - 1));
}

absl::Status ValidateSampling(const GenerateParams::Sampling& sampling, int64_t vocab_size) {
  ISOTHERM_RETURN_IF_ERROR(InRange("sampling.temperature", sampling.temperature, 0.0f, 2.0f));
  ISOTHERM_RETURN_IF_ERROR(InRange("sampling.top_p", sampling.top_p, 0.0f, 1.0f));
  ISOTHERM_RETURN_IF_ERROR(InRange("sampling.top_k", sampling.top_k, 0, INT32_MAX));
  ISOTHERM_RETURN_IF_ERROR(InRange("sampling.min_p", sampling.min_p, 0.0f, 1.0f));
  ISOTHERM_RETURN_IF_ERROR(
      InRange("sampling.repetition_penalty", sampling.repetition_penalty, 0.0f, 2.0f));
  if (sampling.repetition_penalty == 0.0f) {
    return Invalid("sampling.repetition_penalty", "is 0; wanted more than 0, to 2");
  }
  ISOTHERM_RETURN_IF_ERROR(
      InRange("sampling.presence_penalty", sampling.presence_penalty, -2.0f, 2.0f));
  ISOTHERM_RETURN_IF_ERROR(
      InRange("sampling.frequency_penalty", sampling.frequency_penalty, -2.0f, 2.0f));
  ISOTHERM_RETURN_IF_ERROR(InRange("sampling.n", sampling.n, 1, kMaxChoices));
  ISOTHERM_RETURN_IF_ERROR(
      AtMost("sampling.logit_bias", sampling.logit_bias.size(), kMaxLogitBias));
  for (const auto& [token, bias] : sampling.logit_bias) {
    ISOTHERM_RETURN_IF_ERROR(IsToken("sampling.logit_bias", token, vocab_size));
    ISOTHERM_RETURN_IF_ERROR(
        InRange("sampling.logit_bias", std::optional<float>(bias), -100.0f, 100.0f));
  }
  return absl::OkStatus();
}

absl::Status ValidateStop(const GenerateParams::Stop& stop, int64_t vocab_size) {
  ISOTHERM_RETURN_IF_ERROR(InRange("stop.max_tokens", stop.max_tokens, 1, INT32_MAX));
  ISOTHERM_RETURN_IF_ERROR(InRange("stop.min_tokens", stop.min_tokens, 0, INT32_MAX));
  if (stop.max_tokens.has_value() && stop.min_tokens.value_or(0) > *stop.max_tokens) {
    return Invalid("stop.min_tokens", absl::StrCat("is ", *stop.min_tokens,
                                                   ", more than max_tokens ", *stop.max_tokens));
  }
  ISOTHERM_RETURN_IF_ERROR(AtMost("stop.stop", stop.stop.size(), kMaxStops));
  for (const std::string& text : stop.stop) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      return Invalid("stop.stop", absl::StrCat("has a string of ", text.size(),
                                               " bytes; wanted 1 to ", kMaxStopBytes));
    }
  }
  ISOTHERM_RETURN_IF_ERROR(
      AtMost("stop.stop_token_ids", stop.stop_token_ids.size(), kMaxStopTokens));
  for (const TokenId token : stop.stop_token_ids) {
    ISOTHERM_RETURN_IF_ERROR(IsToken("stop.stop_token_ids", token, vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateRequestId(absl::string_view request_id) {
  const bool printable = std::all_of(request_id.begin(), request_id.end(),
                                     [](char c) { return c > ' ' && c < '\x7f'; });
  if (!request_id.empty() && request_id.size() <= kMaxRequestIdBytes && printable) {
    return absl::OkStatus();
  }
  return Invalid("request_id", "wanted: 1 to 128 printable ASCII characters without space");
}

absl::Status ValidateChat(const ChatInput& chat) {
  if (chat.messages.empty() || chat.messages.size() > kMaxMessages) {
    return Invalid("chat.messages", absl::StrCat("has ", chat.messages.size(),
                                                 " messages; wanted 1 to ", kMaxMessages));
  }
  for (const ChatTurn& message : chat.messages) {
    if (std::find(kRoles.begin(), kRoles.end(), message.role) == kRoles.end()) {
      return Invalid("chat.messages.role",
                     "wanted: system, developer, user, assistant, tool or function");
    }
  }
  if (chat.continue_final_message && chat.messages.back().role != "assistant") {
    return Invalid("chat.continue_final_message", "wants an assistant's message as the last one");
  }
  return AtMost("chat.template_kwargs", chat.template_kwargs.size(), kMaxTemplateKwargs);
}

absl::Status Validate(const GenerateParams& params, int64_t vocab_size) {
  ISOTHERM_RETURN_IF_ERROR(ValidateRequestId(params.request_id));
  if (std::holds_alternative<std::monostate>(params.input)) {
    return Invalid("input", "is missing; give prompt, chat or token_ids");
  }
  if (const auto* chat = std::get_if<ChatInput>(&params.input)) {
    ISOTHERM_RETURN_IF_ERROR(ValidateChat(*chat));
  }
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&params.input)) {
    if (tokens->empty()) return Invalid("token_ids", "is empty; wanted at least one token");
    for (const TokenId token : *tokens) {
      ISOTHERM_RETURN_IF_ERROR(IsToken("token_ids", token, vocab_size));
    }
  }
  ISOTHERM_RETURN_IF_ERROR(ValidateSampling(params.sampling, vocab_size));
  ISOTHERM_RETURN_IF_ERROR(ValidateStop(params.stop, vocab_size));
  return InRange("output.top_logprobs", params.output.top_logprobs, 0, kMaxTopLogprobs);
}

SamplingParams ResolveSampling(const GenerateParams::Sampling& sampling, int64_t random_seed) {
  SamplingParams out;
  out.temperature = sampling.temperature.value_or(out.temperature);
  out.top_p = sampling.top_p.value_or(out.top_p);
  out.top_k = sampling.top_k.value_or(out.top_k);
  out.min_p = sampling.min_p.value_or(out.min_p);
  out.repetition_penalty = sampling.repetition_penalty.value_or(out.repetition_penalty);
  out.presence_penalty = sampling.presence_penalty.value_or(out.presence_penalty);
  out.frequency_penalty = sampling.frequency_penalty.value_or(out.frequency_penalty);
  out.seed = sampling.seed.value_or(random_seed);
  out.logit_bias = sampling.logit_bias;
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  return out;
}

}  // namespace isotherm
