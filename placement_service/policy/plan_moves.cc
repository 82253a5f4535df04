#include "placement_service/policy/plan_moves.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

struct Neuron {
  float reads = 0;
  size_t layer = 0;
  int64_t id = 0;
};

std::vector<LayerPlacement> AllCold(const std::vector<LayerGeometry>& layers) {
  std::vector<LayerPlacement> out;
  out.reserve(layers.size());
  for (const LayerGeometry& layer : layers) {
    out.push_back(
        {.hot = std::vector<uint64_t>(static_cast<size_t>(CeilDiv(layer.num_neurons, 64)), 0),
         .num_neurons = layer.num_neurons});
  }
  return out;
}

int64_t UsedBytes(const std::vector<LayerGeometry>& layers,
                  const std::vector<LayerPlacement>& placement) {
  int64_t bytes = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    bytes += placement[l].num_hot * layers[l].bundle_bytes;
  }
  return bytes;
}

void Set(LayerPlacement& layer, int64_t neuron, bool hot) {
  const uint64_t bit = uint64_t{1} << (neuron % 64);
  uint64_t& word = layer.hot[static_cast<size_t>(neuron / 64)];
  layer.num_hot += hot ? 1 : -1;
  word = hot ? word | bit : word & ~bit;
}

// Neurons that are hot in `to` and not in `from`.
std::vector<Neuron> Difference(const std::vector<LayerPlacement>& from,
                               const std::vector<LayerPlacement>& to,
                               const std::vector<std::vector<float>>& reads) {
  std::vector<Neuron> out;
  for (size_t l = 0; l < to.size(); ++l) {
    for (size_t word = 0; word < to[l].hot.size(); ++word) {
      for (uint64_t bits = to[l].hot[word] & ~from[l].hot[word]; bits != 0; bits &= bits - 1) {
        const auto id = static_cast<int64_t>(word * 64) + std::countr_zero(bits);
        const float value = reads.empty() ? 0 : reads[l][static_cast<size_t>(id)];
        out.push_back({value, l, id});
      }
    }
  }
  return out;
}

// The reads with what a move must gain: see PlanMoves.
std::vector<std::vector<float>> WithMargins(const MoveInput& input, const MovePolicy& policy,
                                            const std::vector<LayerPlacement>& live) {
  std::vector<std::vector<float>> out = input.traffic->reads;
  const double steps = std::max(1.0, policy.horizon_tokens / input.traffic->rows_per_step);
  // While the traffic is being learnt, noise counts as if that were done: what is right more often
  // than not moves, and later counts put the rest right.
  const double until = input.traffic->learning_until;
  const double smaller = until > 0 ? std::sqrt(std::min(1.0, input.traffic->tokens / until)) : 1;
  const auto sigmas = static_cast<float>(policy.sigmas * smaller);
  for (size_t l = 0; l < out.size(); ++l) {
    const auto copy =
        static_cast<float>(2 * static_cast<double>(input.layers[l].bundle_bytes) / steps);
    const std::vector<float>& error = input.traffic->error[l];
    for (size_t n = 0; n < out[l].size(); ++n) {
      const bool hot = (live[l].hot[n / 64] >> (n % 64) & 1) != 0;
      const float noise = sigmas * error[n];
      out[l][n] += hot ? noise : -noise - copy;
    }
  }
  return out;
}

// Keeps the arrivals that gain most within the limit, and only those departures that make room.
bool Limit(const MoveInput& input, const std::vector<LayerPlacement>& live,
           std::vector<LayerPlacement>& next) {
  const auto bytes = [&](const Neuron& neuron) { return input.layers[neuron.layer].bundle_bytes; };
  std::vector<Neuron> in = Difference(live, next, input.traffic->reads);
  int64_t in_bytes = 0;
  for (const Neuron& neuron : in) in_bytes += bytes(neuron);
  if (in_bytes <= input.max_in_bytes) return false;
  std::vector<Neuron> out = Difference(next, live, input.traffic->reads);
  std::sort(in.begin(), in.end(),
            [](const Neuron& a, const Neuron& b) { return a.reads > b.reads; });
  std::sort(out.begin(), out.end(),
            [](const Neuron& a, const Neuron& b) { return a.reads < b.reads; });
  next = live;
  int64_t used = UsedBytes(input.layers, live);
  int64_t left = input.max_in_bytes;
  size_t gone = 0;
  // Departures first: those that the budget asks for, then one for each arrival that needs room.
  while (used > input.budget_bytes && gone < out.size()) {
    Set(next[out[gone].layer], out[gone].id, false);
    used -= bytes(out[gone++]);
  }
  for (const Neuron& neuron : in) {
    if (bytes(neuron) > left) break;
    while (used + bytes(neuron) > input.budget_bytes && gone < out.size()) {
      Set(next[out[gone].layer], out[gone].id, false);
      used -= bytes(out[gone++]);
    }
    if (used + bytes(neuron) > input.budget_bytes) break;
    Set(next[neuron.layer], neuron.id, true);
    used += bytes(neuron);
    left -= bytes(neuron);
  }
  return true;
}

std::string Percent(double share) { return absl::StrFormat("%.1f %%", 100 * share); }

}  // namespace

absl::StatusOr<MoveDecision> PlanMoves(const MoveInput& input, const MovePolicy& policy,
                                       SolveHints* hints) {
  const TrafficEstimate& traffic = *input.traffic;
  const bool known = traffic.tokens > 0;
  const std::vector<LayerPlacement> live = input.live.empty() ? AllCold(input.layers) : input.live;
  MoveDecision out;
  if (!known && !input.required) {
    out.reason = "nothing is known of the traffic yet";
    return out;
  }
  SolveInput solve{.layers = input.layers, .bins = {SolveBin()}};
  if (input.use_times && traffic.timed) solve.bins[0] = traffic.costs;
  solve.bins[0].budget_bytes = input.budget_bytes;
  std::vector<std::vector<float>> reads;
  if (known) {
    solve.frequency = traffic.frequency;
    // Without a hot neuron there is nothing to hold on to, and what room there is may be filled.
    reads = input.live.empty() ? traffic.reads : WithMargins(input, policy, live);
    solve.reads = reads;
  }
  ISOTHERM_ASSIGN_OR_RETURN(out.plan, SolvePlacement(solve, hints));
  if (known) out.limited = Limit(input, live, out.plan.layers);
  PlacementPlan& plan = out.plan;
  plan.profile = traffic.profile;
  plan.used_bytes = UsedBytes(input.layers, plan.layers);
  double live_ns = 0;
  if (known) {
    solve.reads = traffic.reads;
    live_ns = PredictStepNs(solve, live);
    plan.predicted_ns = PredictStepNs(solve, plan.layers);
    plan.bound_ns = std::min(plan.bound_ns, plan.predicted_ns);
    std::vector<LayerPlacement> before = live;
    out.live_hit_share = PredictHitShare(traffic.frequency, before);
    plan.objective = PredictHitShare(traffic.frequency, plan.layers);
    out.gain = live_ns > 0 ? (live_ns - plan.predicted_ns) / live_ns : 0;
  }
  for (const Neuron& neuron : Difference(live, plan.layers, {})) {
    out.in_bytes += input.layers[neuron.layer].bundle_bytes;
    ++out.moved_neurons;
  }
  for (const Neuron& neuron : Difference(plan.layers, live, {})) {
    out.out_bytes += input.layers[neuron.layer].bundle_bytes;
    ++out.moved_neurons;
  }
  const std::string basis =
      known ? absl::StrFormat("profile %s, worth %.0f tokens", traffic.profile, traffic.tokens)
            : "no profile, even over the layers";
  if (out.moved_neurons == 0) {
    out.reason = out.limited
                     ? "the cap on moves leaves none for now"
                     : absl::StrCat("no swap gains more than its noise and its copy (", basis, ")");
    return out;
  }
  if (!input.required && out.gain < policy.min_gain) {
    out.reason = absl::StrFormat(
        "%d neurons would move and gain %.2f %% of the layers' time, less than %.2f %% (%s)",
        out.moved_neurons, 100 * out.gain, 100 * policy.min_gain, basis);
    return out;
  }
  out.move = true;
  out.reason = known ? absl::StrCat("expected hit share ", Percent(out.live_hit_share), " -> ",
                                    Percent(plan.objective), ", layers' time ",
                                    absl::StrFormat("%+.1f %%", -100 * out.gain), " (", basis, ")")
                     : basis;
  return out;
}

}  // namespace isotherm
