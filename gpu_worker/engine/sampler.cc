#include "gpu_worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/kernels/work_hash.h"

namespace isotherm::gpu {
namespace {

// The first of the largest logits, NaNs left out; -1: all are NaN or minus infinity. Block by block
// with independent maxima, which compilers turn into vectors: 32,000 logits took 8 us so, 27 one by
// one.
TokenId Best(std::span<const float> logits) {
  constexpr size_t kBlock = 256, kLanes = 16;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float top = kLowest;
  size_t first = 0;  // of the block that has it
  for (size_t at = 0; at < logits.size(); at += kBlock) {
    const size_t count = std::min(kBlock, logits.size() - at);
    const float* const block = logits.data() + at;
    float most[kLanes];
    std::fill(std::begin(most), std::end(most), kLowest);
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (size_t k = 0; k < kLanes; ++k) most[k] = block[i + k] > most[k] ? block[i + k] : most[k];
    }
    for (; i < count; ++i) most[0] = block[i] > most[0] ? block[i] : most[0];
    const float best = *std::max_element(std::begin(most), std::end(most));
    if (best > top) {
      top = best;
      first = at;
    }
  }
  if (top == kLowest) return -1;
  while (logits[first] != top) ++first;
  return static_cast<TokenId>(first);
}

}  // namespace

SamplingState::SamplingState(const SequenceSampling& sampling)
    : params_(sampling.params),
      stop_token_ids_(sampling.stop_token_ids),
      top_logprobs_(sampling.top_logprobs),
      min_tokens_(sampling.min_tokens),
      prompt_length_(static_cast<int64_t>(sampling.penalty_tokens.size())) {
  if (params_.repetition_penalty != 1.0f) {
    for (const TokenId token : sampling.penalty_tokens) ++prompt_counts_[token];
  }
}

void SamplingState::Observe(int32_t position, TokenId token) {
  if (prompt_length_ == 0) return;
  const int64_t index = position - prompt_length_;  // among the sampled ones
  if (index < num_sampled_) return;
  num_sampled_ = static_cast<int32_t>(index + 1);
  ++output_counts_[token];
}

bool SamplingState::IsStop(TokenId token) const {
  return std::find(stop_token_ids_.begin(), stop_token_ids_.end(), token) != stop_token_ids_.end();
}

void SamplingState::Penalise(std::span<float> logits) const {
  const auto in_range = [&](TokenId id) {
    return id >= 0 && static_cast<size_t>(id) < logits.size();
  };
  if (params_.repetition_penalty != 1.0f) {
    const auto repeat = [&](TokenId id) {
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    };
    for (const auto& [id, count] : prompt_counts_) {
      if (in_range(id)) repeat(id);
    }
    for (const auto& [id, count] : output_counts_) {
      if (in_range(id) && !prompt_counts_.contains(id)) repeat(id);
    }
  }
  if (params_.frequency_penalty != 0 || params_.presence_penalty != 0) {
    for (const auto& [id, count] : output_counts_) {
      if (!in_range(id)) continue;
      logits[static_cast<size_t>(id)] -=
          params_.frequency_penalty * static_cast<float>(count) + params_.presence_penalty;
    }
  }
  for (const auto& [id, bias] : params_.logit_bias) {
    if (in_range(id)) logits[static_cast<size_t>(id)] += bias;
  }
  if (num_sampled_ < min_tokens_) {
    for (const TokenId id : stop_token_ids_) {
      if (in_range(id)) logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Counter-based: the n-th draw of a seed is the same whatever ran before it.
PlainDraw SamplingState::DrawAt(int32_t index) const {
  // So cold that only the largest are left: the inverse is no number to compute with.
  const float inverse = 1.0f / params_.temperature;
  const bool greedy = params_.top_k == 1 || !std::isfinite(inverse);
  return {.greedy = greedy,
          .inverse_temperature = greedy ? 1.0f : inverse,
          .floor = params_.min_p > 0 ? std::log(params_.min_p) * params_.temperature
                                     : -std::numeric_limits<float>::infinity(),
          .top_k = params_.top_k,
          .top_p = params_.top_p,
          .bits = Mix64(Mix64(static_cast<uint64_t>(params_.seed) + 0x9e3779b97f4a7c15u) +
                        static_cast<uint64_t>(index))};
}

std::optional<PlainDraw> SamplingState::Plain(int32_t ahead) const {
  const bool plain = params_.repetition_penalty == 1.0f && params_.frequency_penalty == 0 &&
                     params_.presence_penalty == 0 && params_.logit_bias.empty() &&
                     top_logprobs_ < 0 && num_sampled_ >= min_tokens_;
  if (!plain) return std::nullopt;
  return DrawAt(num_sampled_ + ahead);
}

void SamplingState::Take(TokenId token) {
  ++num_sampled_;
  ++output_counts_[token];
}

TokenId SamplingState::Draw(std::span<const float> logits, float top) {
  const PlainDraw draw = DrawAt(num_sampled_);
  // The floor also keeps the list short.
  const float floor = std::max(std::numeric_limits<float>::lowest(), top + draw.floor);
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] < floor) continue;
    const float share = std::exp((logits[i] - top) * draw.inverse_temperature);
    candidates_.push_back({.logit = logits[i],
                           .id = static_cast<TokenId>(i),
                           .weight = static_cast<uint64_t>(share * kDrawUnit)});
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  bool by_id = true;
  if (draw.top_k > 0 && static_cast<size_t>(draw.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + draw.top_k, candidates_.end(),
                     better);
    candidates_.resize(static_cast<size_t>(draw.top_k));
    by_id = false;
  }
  uint64_t total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  if (draw.top_p < 1.0f) {
    std::sort(candidates_.begin(), candidates_.end(), better);
    const auto wanted =
        static_cast<uint64_t>(static_cast<double>(draw.top_p) * static_cast<double>(total));
    uint64_t sum = 0;
    size_t keep = 0;
    while (keep < candidates_.size() && (keep == 0 || sum < wanted))
      sum += candidates_[keep++].weight;
    candidates_.resize(keep);
    total = sum;
    by_id = false;
  }
  if (!by_id) {
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  const auto picked = static_cast<uint64_t>(
      (static_cast<unsigned __int128>(draw.bits) * static_cast<unsigned __int128>(total)) >> 64);
  uint64_t sum = 0;
  for (const Candidate& candidate : candidates_) {
    sum += candidate.weight;
    if (sum > picked) return candidate.id;
  }
  return candidates_.back().id;  // not reached: the sum is `total`, and picked is less
}

TokenLogprobs SamplingState::Logprobs(std::span<const float> logits, float top,
                                      TokenId token) const {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - top));
  const float log_total = top + static_cast<float>(std::log(sum));
  const auto at = [&](TokenId id) { return logits[static_cast<size_t>(id)]; };
  TokenLogprobs out{.sampled = {token, at(token) - log_total}};
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t count = std::min(ids.size(), static_cast<size_t>(top_logprobs_));
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(),
                    [&](TokenId a, TokenId b) { return at(a) != at(b) ? at(a) > at(b) : a < b; });
  for (size_t i = 0; i < count; ++i) out.top.push_back({ids[i], at(ids[i]) - log_total});
  return out;
}

TokenId SamplingState::Sample(std::span<float> logits, std::optional<TokenLogprobs>* logprobs) {
  Penalise(logits);
  const TokenId best = Best(logits);
  if (best < 0) return -1;
  const float top = logits[static_cast<size_t>(best)];
  if (!std::isfinite(top)) return -1;
  const bool greedy = DrawAt(num_sampled_).greedy;
  if (!greedy || top_logprobs_ >= 0) {
    for (float& logit : logits) {
      if (std::isnan(logit)) logit = -std::numeric_limits<float>::infinity();
    }
  }
  const TokenId token = greedy ? best : Draw(logits, top);
  if (top_logprobs_ >= 0) *logprobs = Logprobs(logits, top, token);
  Take(token);
  return token;
}

}  // namespace isotherm::gpu
