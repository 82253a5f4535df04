#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/step/step.h"

namespace isotherm::gpu {

// Sampling of one sequence: its parameters, its random stream and the tokens seen so far. The
// stream depends on the seed and the number of tokens sampled alone, so batch-mates, grants and
// re-runs change nothing.
class SamplingState {
 public:
  explicit SamplingState(const SequenceSampling& sampling);

  // Takes the logits of one row (modified in place) and returns the token: penalties and bias, then
  // temperature, top-k, top-p, min-p. Greedy takes the lowest id among equals. Logprobs, if asked
  // for, are of the distribution before temperature and truncation.
  TokenId Sample(std::span<float> logits, std::optional<TokenLogprobs>* logprobs);

  // A token that was sampled before the sequence was recomputed: it counts, and the stream goes on
  // behind it.
  void CountEarlier(TokenId token);
  // Positions from here on hold sampled tokens.
  int64_t prompt_length() const { return prompt_length_; }

  bool IsStop(TokenId token) const;
  int32_t num_sampled() const { return num_sampled_; }

 private:
  void Penalise(std::span<float> logits) const;
  double NextUniform();
  TokenId Draw(std::span<float> logits);

  SamplingParams params_;
  std::vector<TokenId> stop_token_ids_;
  int32_t top_logprobs_;
  int32_t min_tokens_;
  int64_t prompt_length_;
  int32_t num_sampled_ = 0;
  absl::flat_hash_map<TokenId, int32_t> prompt_counts_;
  absl::flat_hash_map<TokenId, int32_t> output_counts_;
  std::vector<std::pair<float, TokenId>> candidates_;
};

}  // namespace isotherm::gpu
