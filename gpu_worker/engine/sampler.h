#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/step/step.h"
#include "gpu_worker/engine/plain_draw.h"

namespace isotherm::gpu {

// Sampling of one sequence: its parameters, its random stream and the tokens seen so far. The
// stream depends on the seed and the number of tokens sampled alone, so batch-mates, grants and
// re-runs change nothing. Used by one thread at a time.
class SamplingState {
 public:
  explicit SamplingState(const SequenceSampling& sampling);

  // A token that was fed, not sampled here. Past the prompt it is one that this sequence had
  // sampled before it was moved or computed again: it counts as if it had been sampled just now.
  // Telling it the same token again changes nothing.
  void Observe(int32_t position, TokenId token);

  // Takes the logits of one row (modified in place) and returns the token: penalties and bias, then
  // temperature, top-k, top-p, min-p. Greedy takes the lowest id among equals. Logprobs, if asked
  // for, are of the distribution after penalties, before temperature and truncation. -1, and
  // nothing changed, when no logit is a number or one is +infinity.
  TokenId Sample(std::span<float> logits, std::optional<TokenLogprobs>* logprobs);

  // The draw that comes after `ahead` others; nothing when it also needs penalties, bias, masked
  // stop tokens or logprobs.
  std::optional<PlainDraw> Plain(int32_t ahead = 0) const;
  // Counts a token that a device drew by Plain().
  void Take(TokenId token);

  bool IsStop(TokenId token) const;
  std::span<const TokenId> stop_token_ids() const { return stop_token_ids_; }
  int32_t num_sampled() const { return num_sampled_; }

 private:
  void Penalise(std::span<float> logits) const;
  PlainDraw DrawAt(int32_t index) const;
  TokenId Draw(std::span<const float> logits, float top);
  TokenLogprobs Logprobs(std::span<const float> logits, float top, TokenId token) const;

  SamplingParams params_;
  std::vector<TokenId> stop_token_ids_;
  int32_t top_logprobs_;
  int32_t min_tokens_;
  int64_t prompt_length_;  // 0: unknown
  int32_t num_sampled_ = 0;
  absl::flat_hash_map<TokenId, int32_t> prompt_counts_;
  absl::flat_hash_map<TokenId, int32_t> output_counts_;
  struct Candidate {
    float logit;
    TokenId id;
    uint64_t weight;
  };
  std::vector<Candidate> candidates_;
};

}  // namespace isotherm::gpu
