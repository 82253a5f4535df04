#include "gateway/request/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "common/base/error_reason.h"

namespace isotherm {
namespace {

GenerateParams Good() {
  GenerateParams params;
  params.request_id = "r1";
  params.input = std::string("hello");
  return params;
}

struct Case {
  const char* field;  // nullptr: accepted
  std::function<void(GenerateParams&)> change;
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(ValidateTest, EachBoundIsNamedByItsField) {
  const auto chat = [](GenerateParams& p) -> ChatInput& {
    p.input = ChatInput{.messages = {{.role = "user", .content = "hi"}}};
    return std::get<ChatInput>(p.input);
  };
  const std::vector<Case> cases = {
      {nullptr, [](auto& p) {}},
      {"request_id", [](auto& p) { p.request_id = ""; }},
      {"request_id", [](auto& p) { p.request_id = "a b"; }},
      {"request_id", [](auto& p) { p.request_id = std::string(129, 'a'); }},
      {"input", [](auto& p) { p.input = std::monostate(); }},
      {"token_ids", [](auto& p) { p.input = std::vector<TokenId>{}; }},
      {"token_ids", [](auto& p) { p.input = std::vector<TokenId>{100}; }},
      {"token_ids", [](auto& p) { p.input = std::vector<TokenId>{-1}; }},
      {nullptr,
       [](auto& p) {
         p.input = std::vector<TokenId>{0, 99};
       }},
      {nullptr, [&](auto& p) { chat(p); }},
      {"chat.messages", [&](auto& p) { chat(p).messages.clear(); }},
      {"chat.messages", [&](auto& p) { chat(p).messages.resize(1025, {.role = "user"}); }},
      {"chat.messages.role", [&](auto& p) { chat(p).messages[0].role = "root"; }},
      {"chat.continue_final_message", [&](auto& p) { chat(p).continue_final_message = true; }},
      {"chat.template_kwargs",
       [&](auto& p) {
         ChatInput& c = chat(p);
         for (int i = 0; i < 17; ++i) c.template_kwargs[std::to_string(i)] = "x";
       }},
      {nullptr, [](auto& p) { p.sampling.temperature = 0; }},
      {nullptr, [](auto& p) { p.sampling.temperature = 2; }},
      {"sampling.temperature", [](auto& p) { p.sampling.temperature = -0.01f; }},
      {"sampling.temperature", [](auto& p) { p.sampling.temperature = 2.01f; }},
      {"sampling.temperature", [](auto& p) { p.sampling.temperature = kNan; }},
      {"sampling.temperature", [](auto& p) { p.sampling.temperature = kInf; }},
      {"sampling.top_p", [](auto& p) { p.sampling.top_p = 1.01f; }},
      {"sampling.top_p", [](auto& p) { p.sampling.top_p = -1; }},
      {"sampling.top_k", [](auto& p) { p.sampling.top_k = -1; }},
      {"sampling.min_p", [](auto& p) { p.sampling.min_p = kNan; }},
      {"sampling.repetition_penalty", [](auto& p) { p.sampling.repetition_penalty = 0; }},
      {"sampling.repetition_penalty", [](auto& p) { p.sampling.repetition_penalty = 2.1f; }},
      {"sampling.presence_penalty", [](auto& p) { p.sampling.presence_penalty = -2.1f; }},
      {"sampling.frequency_penalty", [](auto& p) { p.sampling.frequency_penalty = 2.1f; }},
      {"sampling.n", [](auto& p) { p.sampling.n = 0; }},
      {"sampling.n", [](auto& p) { p.sampling.n = 9; }},
      {"sampling.logit_bias",
       [](auto& p) {
         p.sampling.logit_bias = {{100, 1.0f}};
       }},
      {"sampling.logit_bias",
       [](auto& p) {
         p.sampling.logit_bias = {{1, 101.0f}};
       }},
      {"sampling.logit_bias",
       [](auto& p) {
         p.sampling.logit_bias = {{1, kNan}};
       }},
      {"sampling.logit_bias", [](auto& p) { p.sampling.logit_bias.resize(1025); }},
      {"stop.max_tokens", [](auto& p) { p.stop.max_tokens = 0; }},
      {"stop.max_tokens", [](auto& p) { p.stop.max_tokens = -1; }},
      {"stop.min_tokens", [](auto& p) { p.stop.min_tokens = -1; }},
      {"stop.min_tokens",
       [](auto& p) {
         p.stop.max_tokens = 3;
         p.stop.min_tokens = 4;
       }},
      {"stop.stop", [](auto& p) { p.stop.stop.resize(17, "x"); }},
      {"stop.stop", [](auto& p) { p.stop.stop = {""}; }},
      {"stop.stop", [](auto& p) { p.stop.stop = {std::string(257, 'x')}; }},
      {nullptr, [](auto& p) { p.stop.stop.resize(16, std::string(256, 'x')); }},
      {"stop.stop_token_ids", [](auto& p) { p.stop.stop_token_ids = {100}; }},
      {"stop.stop_token_ids", [](auto& p) { p.stop.stop_token_ids.resize(65); }},
      {"output.top_logprobs", [](auto& p) { p.output.top_logprobs = 21; }},
      {"output.top_logprobs", [](auto& p) { p.output.top_logprobs = -1; }},
      {nullptr, [](auto& p) { p.output.top_logprobs = 0; }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    GenerateParams params = Good();
    cases[i].change(params);
    const absl::Status status = Validate(params, 100);
    if (cases[i].field == nullptr) {
      EXPECT_EQ(status, absl::OkStatus()) << i;
      continue;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << i << " " << cases[i].field;
    const auto reason = ErrorReasonOf(status);
    ASSERT_TRUE(reason.has_value()) << i;
    EXPECT_EQ(reason->reason, "INVALID_VALUE");
    EXPECT_EQ(reason->field, cases[i].field);
  }
}

TEST(ValidateTest, AbsentSamplingTakesTheDefaults) {
  const SamplingParams params = ResolveSampling({}, 77);
  EXPECT_EQ(params.temperature, 1.0f);
  EXPECT_EQ(params.top_p, 1.0f);
  EXPECT_EQ(params.top_k, 0);
  EXPECT_EQ(params.repetition_penalty, 1.0f);
  EXPECT_EQ(params.seed, 77);
  EXPECT_EQ(ResolveSampling({.seed = 5}, 77).seed, 5);
}

}  // namespace
}  // namespace isotherm
