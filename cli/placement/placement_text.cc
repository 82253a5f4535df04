#include "cli/placement/placement_text.h"

#include <ctime>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/placement/memory_text.h"
#include "cli/serve/summary.h"
#include "cli/ui/share_bar.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

std::string Percent(double share) { return absl::StrFormat("%.0f %%", 100 * share); }

std::string Gain(double share) { return absl::StrFormat("%+.1f %% layers' time", -100 * share); }

double HotShareOf(const LayerShare& layer) {
  return layer.total_neurons > 0
             ? static_cast<double>(layer.hot_neurons) / static_cast<double>(layer.total_neurons)
             : 0;
}

void AppendLayers(const PlacementInfo& plan, std::string* out) {
  const bool seen = plan.seen.size() == plan.layers.size();
  absl::StrAppend(out, "layer  hot neurons                   share  hits expected",
                  seen ? "  hits seen                         gpu/cpu/wait us" : "", "\n");
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerShare& layer = plan.layers[l];
    absl::StrAppendFormat(out, "%5d  %s  %4.0f %%  %11.0f %%", l, ShareBar(HotShareOf(layer), 28),
                          100 * HotShareOf(layer), 100 * layer.predicted_hit_share);
    if (seen) {
      const LayerSeen& s = plan.seen[l];
      absl::StrAppendFormat(out, "  %s  %3.0f %%  %4.0f/%.0f/%.0f", ShareBar(s.hit_share, 28),
                            100 * s.hit_share, s.gpu_us, s.cpu_us, s.wait_us);
    }
    out->push_back('\n');
  }
}

}  // namespace

std::string Timestamp(int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return absl::StrFormat("%04d-%02d-%02d %02d:%02d:%02d UTC", utc.tm_year + 1900, utc.tm_mon + 1,
                         utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

std::string PlanText(const PlacementInfo& plan) {
  std::string out;
  if (plan.epoch == 0) {
    out = "epoch 0, built in: no neuron is hot\n";
  } else {
    absl::StrAppend(&out, "epoch ", plan.epoch, ", ", plan.cause,
                    plan.from_epoch > 0 ? absl::StrCat(" of epoch ", plan.from_epoch) : "",
                    ", made ", Timestamp(plan.created_unix_ms), plan.pinned ? ", pinned" : "",
                    "\n");
    absl::StrAppendFormat(&out,
                          "%s of the neurons hot: %s of %s; expected to take %s of the work "
                          "(profile %s)\n",
                          Percent(HotShare(plan)), FormatBytes(plan.used_bytes),
                          FormatBytes(plan.budget_bytes), Percent(plan.objective), plan.profile);
  }
  if (plan.seen_tokens > 0) {
    absl::StrAppendFormat(&out, "seen over %d tokens: %s\n", plan.seen_tokens,
                          Percent(plan.seen_hit_share));
  }
  if (!plan.status.empty()) absl::StrAppend(&out, plan.status, "\n");
  if (!plan.layers.empty()) AppendLayers(plan, &out);
  if (plan.memory.has_value()) absl::StrAppend(&out, MemoryText(*plan.memory));
  return out;
}

nlohmann::ordered_json PlanJson(const PlacementInfo& plan, bool with_layers) {
  nlohmann::ordered_json json;
  json["epoch"] = plan.epoch;
  json["etag"] = plan.etag;
  json["cause"] = plan.cause;
  json["from_epoch"] = plan.from_epoch;
  json["created_unix_ms"] = plan.created_unix_ms;
  json["profile"] = plan.profile;
  json["solver"] = plan.solver;
  json["budget_bytes"] = plan.budget_bytes;
  json["used_bytes"] = plan.used_bytes;
  json["expected_hit_share"] = plan.objective;
  json["predicted_ns"] = plan.predicted_ns;
  json["bound_ns"] = plan.bound_ns;
  if (!with_layers) return json;
  json["hot_share"] = HotShare(plan);
  json["pinned"] = plan.pinned;
  json["status"] = plan.status;
  if (plan.seen_tokens > 0) {
    json["seen_hit_share"] = plan.seen_hit_share;
    json["seen_tokens"] = plan.seen_tokens;
  }
  if (plan.memory.has_value()) json["memory"] = MemoryJson(*plan.memory);
  json["layers"] = nlohmann::ordered_json::array();
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerShare& layer = plan.layers[l];
    nlohmann::ordered_json item = {{"hot_neurons", layer.hot_neurons},
                                   {"total_neurons", layer.total_neurons},
                                   {"predicted_hit_share", layer.predicted_hit_share}};
    if (l < plan.seen.size()) {
      const LayerSeen& seen = plan.seen[l];
      item["seen_hit_share"] = seen.hit_share;
      item["gpu_us"] = seen.gpu_us;
      item["cpu_us"] = seen.cpu_us;
      item["wait_us"] = seen.wait_us;
      item["merge_us"] = seen.merge_us;
    }
    json["layers"].push_back(std::move(item));
  }
  return json;
}

std::string HistoryText(const std::vector<PlacementHistoryEntry>& entries) {
  std::string out =
      "epoch  state      cause      made                     hot size  moved     expected  seen  "
      "why\n";
  for (const PlacementHistoryEntry& entry : entries) {
    const std::string seen =
        entry.measured_hit_share.has_value() ? Percent(*entry.measured_hit_share) : "-";
    std::string why = entry.message.empty() ? entry.reason : entry.message;
    if (entry.measured_gain.has_value()) {
      absl::StrAppend(&why, why.empty() ? "" : "; ", "measured ", Gain(*entry.measured_gain));
    }
    absl::StrAppendFormat(&out, "%5d  %-9s  %-9s  %s  %8s  %-8d  %8s  %4s  %s\n", entry.plan.epoch,
                          entry.state, entry.plan.cause, Timestamp(entry.plan.created_unix_ms),
                          FormatBytes(entry.plan.used_bytes), entry.moved_neurons,
                          Percent(entry.plan.objective), seen, why);
  }
  return out;
}

nlohmann::ordered_json HistoryJson(const std::vector<PlacementHistoryEntry>& entries) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const PlacementHistoryEntry& entry : entries) {
    nlohmann::ordered_json item = PlanJson(entry.plan, false);
    item["state"] = entry.state;
    item["moved_neurons"] = entry.moved_neurons;
    item["message"] = entry.message;
    item["reason"] = entry.reason;
    item["predicted_gain"] = entry.predicted_gain;
    if (entry.measured_hit_share.has_value()) {
      item["measured_hit_share"] = *entry.measured_hit_share;
    }
    if (entry.measured_gain.has_value()) item["measured_gain"] = *entry.measured_gain;
    json.push_back(std::move(item));
  }
  return json;
}

std::string RecomputationText(const RecomputationInfo& recomputation) {
  std::string out = absl::StrCat(recomputation.state, ": ", recomputation.reason, "\n");
  if (recomputation.moved_neurons > 0) {
    absl::StrAppendFormat(
        &out, "%d neurons %s, %s copied; predicted %s\n", recomputation.moved_neurons,
        recomputation.state == "applied" ? "moved" : "to move",
        FormatBytes(recomputation.moved_bytes), Gain(recomputation.predicted_gain));
  }
  if (recomputation.state == "applied" && recomputation.proposal.has_value()) {
    absl::StrAppend(&out, "epoch ", recomputation.proposal->epoch, " is live\n");
  }
  return out;
}

nlohmann::ordered_json RecomputationJson(const RecomputationInfo& recomputation) {
  nlohmann::ordered_json json = {{"id", recomputation.id},
                                 {"state", recomputation.state},
                                 {"progress", recomputation.progress},
                                 {"moved_neurons", recomputation.moved_neurons},
                                 {"moved_bytes", recomputation.moved_bytes},
                                 {"predicted_gain", recomputation.predicted_gain},
                                 {"reason", recomputation.reason}};
  if (recomputation.proposal.has_value()) {
    json["proposal"] = PlanJson(*recomputation.proposal, true);
    json["proposal"].erase("pinned");
    json["proposal"].erase("status");
  }
  return json;
}

std::string EventText(const PlacementEvent& event) {
  if (event.recomputation.has_value()) {
    const RecomputationInfo& r = *event.recomputation;
    return absl::StrFormat("recomputation %s %s: %s\n", r.id, r.state, r.reason);
  }
  if (event.budget.has_value()) {
    return absl::StrFormat("budget %s, %s used\n", FormatBytes(event.budget->effective_bytes),
                           FormatBytes(event.budget->used_bytes));
  }
  if (!event.alarm.empty()) return absl::StrCat("alarm: ", event.alarm, "\n");
  return absl::StrFormat("epoch %d %s, %s, %s hot, expected to take %s of the work%s\n",
                         event.plan->epoch, event.state, event.plan->cause,
                         FormatBytes(event.plan->used_bytes), Percent(event.plan->objective),
                         event.message.empty() ? "" : absl::StrCat(": ", event.message));
}

nlohmann::ordered_json EventJson(const PlacementEvent& event) {
  nlohmann::ordered_json json = {{"sequence", event.sequence}};
  if (event.recomputation.has_value()) {
    json["recomputation"] = RecomputationJson(*event.recomputation);
  } else if (event.budget.has_value()) {
    json["budget"] = {{"requested_bytes", event.budget->requested_bytes},
                      {"effective_bytes", event.budget->effective_bytes},
                      {"used_bytes", event.budget->used_bytes}};
  } else if (!event.alarm.empty()) {
    json["alarm"] = event.alarm;
  } else {
    json["plan"] = PlanJson(*event.plan, false);
    json["state"] = event.state;
    json["message"] = event.message;
  }
  return json;
}

}  // namespace isotherm::cli
