#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/step/sampling_params.h"

namespace isotherm {

struct ChatTurn {
  std::string role;
  std::string content;
  std::string name;
  std::string tool_call_id;
};

struct ChatInput {
  std::vector<ChatTurn> messages;
  bool continue_final_message = false;
  std::map<std::string, std::string> template_kwargs;
};

// A generation as a client asks for it: nothing resolved, nothing checked.
struct GenerateParams {
  struct Sampling {
    std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty;
    std::optional<int32_t> top_k, n;
    std::optional<int64_t> seed;
    std::vector<std::pair<TokenId, float>> logit_bias;
  };
  struct Stop {
    std::optional<int32_t> max_tokens, min_tokens;
    std::vector<std::string> stop;
    std::vector<TokenId> stop_token_ids;
    bool ignore_eos = false;
    bool include_stop_in_output = false;
  };
  struct Output {
    bool return_text = true;
    bool return_token_ids = false;
    std::optional<int32_t> top_logprobs;
    bool echo = false;
    bool progress = false;
    bool layer_timings = false;
  };
  using Input = std::variant<std::monostate, std::string, ChatInput, std::vector<TokenId>>;

  std::string request_id;
  std::string model;
  Input input;
  Sampling sampling;
  Stop stop;
  Output output;
  bool exact = false;
  int32_t priority = 0;
};

}  // namespace isotherm
