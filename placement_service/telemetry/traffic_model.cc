#include "placement_service/telemetry/traffic_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "placement_service/profile/expected_reads.h"

namespace isotherm {
namespace {

// A worker's arrays are not read at one instant: a count may be ahead of its tokens by a few steps.
constexpr uint64_t kCountSlack = 2'048;
// More than any machine counts in the longest interval, so that sums stay far from overflow.
constexpr uint64_t kMaxTokens = uint64_t{1} << 40;
constexpr uint64_t kMaxSum = uint64_t{1} << 60;
constexpr double kBurstSeconds = 4;
constexpr size_t kMaxInstances = 16;
// Tokens after which what was seen of the live plan is worth half.
constexpr double kMeasureHalfLife = 4'000;

bool Fits(const std::vector<uint32_t>& counts, uint64_t most) {
  uint32_t largest = 0;
  for (const uint32_t count : counts) largest = std::max(largest, count);
  return largest <= most;
}

}  // namespace

TrafficModel::TrafficModel(const TrafficOptions& options, const Clock& clock)
    : options_(options), clock_(clock), drift_(options.drift) {}

void TrafficModel::StartOver() {
  profile_ = std::make_unique<LiveProfile>(shape_.num_layers, shape_.num_neurons, options_.profile);
  profile_->Start(prior_name_, prior_predicted_, prior_fired_, prior_tokens_);
  profile_->SetMemory(memory_);
  costs_ = CostEstimator();
  from_nothing_ = prior_predicted_.empty();
  drift_.Expect(std::nullopt);
  watches_drift_ = false;
  live_ = PlacementPlan();
  live_sums_.clear();
  live_tokens_ = 0;
  total_tokens_ = learnt_tokens_ = 0;
}

void TrafficModel::SetPrior(std::string name, std::vector<std::vector<float>> predicted,
                            std::vector<std::vector<float>> fired, double tokens) {
  absl::MutexLock lock(&mu_);
  prior_name_ = std::move(name);
  prior_predicted_ = std::move(predicted);
  prior_fired_ = std::move(fired);
  prior_tokens_ = tokens > 0 ? tokens : options_.prior_tokens;
  if (profile_ == nullptr) return;
  profile_->Start(prior_name_, prior_predicted_, prior_fired_, prior_tokens_);
  learnt_tokens_ = 0;
  from_nothing_ = prior_predicted_.empty();
}

bool TrafficModel::Learning() const {
  return from_nothing_ && learnt_tokens_ < options_.learn_tokens;
}

void TrafficModel::SetModel(const ModelShape& shape, std::optional<StoredProfile> stored) {
  absl::MutexLock lock(&mu_);
  const bool same = profile_ != nullptr && shape.digest == shape_.digest &&
                    shape.num_layers == shape_.num_layers &&
                    shape.num_neurons == shape_.num_neurons;
  shape_ = shape;
  if (same) return;
  StartOver();
  const auto neurons = static_cast<size_t>(shape.num_neurons);
  const bool usable =
      stored.has_value() && stored->model_digest == shape.digest &&
      static_cast<int64_t>(stored->layers.size()) == shape.num_layers &&
      std::all_of(stored->layers.begin(), stored->layers.end(), [&](const LiveProfile::Layer& l) {
        return l.predicted.size() == neurons && l.fired.size() == neurons;
      });
  if (!usable) return;
  for (size_t l = 0; l < stored->layers.size(); ++l) profile_->Restore(l, stored->layers[l]);
  profile_->SetName(stored->name);
  from_nothing_ = stored->name == LiveProfile::kNothingKnown;
  total_tokens_ = learnt_tokens_ = stored->total_tokens;
  for (const auto& [id, sequence] : stored->last_sequence) {
    if (instances_.size() < kMaxInstances) instances_[id].last_sequence = sequence;
  }
}

void TrafficModel::SetWorkers(const std::string& gpu_instance, const std::string& cpu_instance) {
  absl::MutexLock lock(&mu_);
  gpu_instance_ = gpu_instance;
  cpu_instance_ = cpu_instance;
  // Sequences of workers that are gone mean nothing any more.
  for (auto it = instances_.begin(); it != instances_.end();) {
    const bool gone = instances_.size() > kMaxInstances / 2 && it->first != gpu_instance &&
                      it->first != cpu_instance;
    it = gone ? instances_.erase(it) : std::next(it);
  }
}

void TrafficModel::SetLive(const PlacementPlan& plan) {
  absl::MutexLock lock(&mu_);
  if (plan.epoch == live_.epoch && !live_.layers.empty()) return;
  live_ = plan;
  live_sums_.assign(plan.layers.size(), LayerSums());
  live_tokens_ = 0;
  const bool fits =
      static_cast<int64_t>(plan.layers.size()) == shape_.num_layers &&
      std::all_of(plan.layers.begin(), plan.layers.end(), [&](const LayerPlacement& layer) {
        return layer.num_neurons == shape_.num_neurons && !layer.hot.empty();
      });
  if (!fits) live_sums_.clear();
  WatchLive();
}

// While the traffic is being learnt what a plan promises is made of too few tokens to be missed.
void TrafficModel::WatchLive() {
  watches_drift_ =
      !live_sums_.empty() && profile_ != nullptr && profile_->tokens() > 0 && !Learning();
  if (!watches_drift_) return drift_.Expect(std::nullopt);
  std::vector<std::vector<float>> frequency;
  for (int64_t l = 0; l < profile_->num_layers(); ++l) {
    frequency.push_back(profile_->Get(static_cast<size_t>(l)).predicted);
  }
  std::vector<LayerPlacement> layers = live_.layers;
  drift_.Expect(PredictHitShare(frequency, layers));
}

absl::Status TrafficModel::Check(const TelemetryReport& report, bool from_gpu) const {
  const auto bad = [&](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat("report ", report.sequence, " ", what...));
  };
  if (report.layers.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(report.layers.size()) != shape_.num_layers ||
      report.num_neurons != shape_.num_neurons) {
    return bad("is of ", report.layers.size(), " layers of ", report.num_neurons,
               " neurons, the model has ", shape_.num_layers, " of ", shape_.num_neurons);
  }
  for (const LayerTelemetry& layer : report.layers) {
    const LayerCounters& c = layer.counts;
    const uint64_t tokens = c.tokens + c.exact_tokens;
    const uint64_t largest =
        std::max({c.timed_steps, c.gpu_ns, c.cpu_ns, c.wait_ns, c.merge_ns, c.hot_bytes,
                  c.timed_cold_bytes, c.cold_bytes, report.steps, report.decode_rows});
    if (c.tokens > kMaxTokens || c.exact_tokens > kMaxTokens || largest > kMaxSum) {
      return bad("has numbers that nothing counts to in its time");
    }
    if (!Fits(layer.predicted, c.tokens + kCountSlack) ||
        !Fits(layer.fired, tokens + kCountSlack) || (!from_gpu && !layer.predicted.empty())) {
      return bad("counts a neuron more often than there were tokens");
    }
  }
  return absl::OkStatus();
}

// Whether the report may count at all; notes its sequence.
absl::Status TrafficModel::Admit(const TelemetryReport& report) {
  const bool from_gpu = !gpu_instance_.empty() && report.instance_id == gpu_instance_;
  const bool from_cpu = !cpu_instance_.empty() && report.instance_id == cpu_instance_;
  if (profile_ == nullptr || !(from_gpu || from_cpu)) {
    return absl::NotFoundError("the report is of no worker that this service knows");
  }
  if (report.model_digest != shape_.digest) {
    return absl::NotFoundError("the report is of another model");
  }
  Instance& instance = instances_[report.instance_id];
  const Clock::TimePoint now = clock_.Now();
  const double burst = options_.max_reports_per_second * kBurstSeconds;
  const double waited = std::chrono::duration<double>(now - instance.seen).count();
  instance.allowance =
      std::min(burst, instance.allowance + waited * options_.max_reports_per_second);
  instance.seen = now;
  if (report.sequence <= instance.last_sequence) {
    ++counts_.doubled;
    return absl::AlreadyExistsError(
        absl::StrCat("report ", report.sequence, " comes after ", instance.last_sequence));
  }
  if (instance.last_sequence > 0 && report.sequence > instance.last_sequence + 1) {
    const int64_t lost = report.sequence - instance.last_sequence - 1;
    counts_.lost += lost;
    LogWarning("{} telemetry reports of {} were lost", lost, report.instance_id);
  }
  instance.last_sequence = report.sequence;
  if (instance.allowance < 1) {
    return absl::ResourceExhaustedError("the worker reports too often");
  }
  instance.allowance -= 1;
  return Check(report, from_gpu);
}

absl::Status TrafficModel::Accept(const TelemetryReport& report) {
  absl::MutexLock lock(&mu_);
  if (absl::Status status = Admit(report); !status.ok()) {
    ++counts_.dropped;
    return status;
  }
  ++counts_.accepted;
  const bool from_gpu = report.instance_id == gpu_instance_;
  profile_->Add(report, from_gpu);
  if (!from_gpu) {
    costs_.AddCpuReport(report);
    return absl::OkStatus();
  }
  seen_at_ = clock_.Now();
  if (report.layers.empty()) return absl::OkStatus();
  worked_at_ = seen_at_;
  costs_.AddGpuReport(report);
  uint64_t tokens = 0;
  for (const LayerTelemetry& layer : report.layers) {
    tokens = std::max(tokens, layer.counts.tokens);
  }
  total_tokens_ += static_cast<double>(tokens);
  learnt_tokens_ += static_cast<double>(tokens);
  if (!watches_drift_ && from_nothing_ && !Learning()) WatchLive();
  if (report.epoch == live_.epoch && report.epoch_changes == 0) Measure(report);
  return absl::OkStatus();
}

// All of the report's steps ran under the live plan.
void TrafficModel::Measure(const TelemetryReport& report) {
  uint64_t tokens = 0;
  for (const LayerTelemetry& layer : report.layers) {
    tokens = std::max(tokens, layer.counts.tokens);
  }
  if (tokens == 0 || live_sums_.size() != report.layers.size()) return;
  const double keep = std::exp2(-static_cast<double>(tokens) / kMeasureHalfLife);
  double hot = 0, all = 0;
  for (size_t l = 0; l < report.layers.size(); ++l) {
    const LayerTelemetry& layer = report.layers[l];
    LayerSums& sums = live_sums_[l];
    for (double* sum : {&sums.hot, &sums.all, &sums.steps, &sums.gpu_ns, &sums.cpu_ns,
                        &sums.wait_ns, &sums.merge_ns}) {
      *sum *= keep;
    }
    uint64_t layer_hot = 0, layer_all = 0;
    for (const uint32_t count : layer.predicted) layer_all += count;
    if (!layer.predicted.empty()) {
      for (size_t word = 0; word < live_.layers[l].hot.size(); ++word) {
        for (uint64_t bits = live_.layers[l].hot[word]; bits != 0; bits &= bits - 1) {
          layer_hot += layer.predicted[word * 64 + static_cast<size_t>(std::countr_zero(bits))];
        }
      }
    }
    sums.hot += static_cast<double>(layer_hot);
    sums.all += static_cast<double>(layer_all);
    sums.steps += static_cast<double>(layer.counts.timed_steps);
    sums.gpu_ns += static_cast<double>(layer.counts.gpu_ns);
    sums.cpu_ns += static_cast<double>(layer.counts.cpu_ns);
    sums.wait_ns += static_cast<double>(layer.counts.wait_ns);
    sums.merge_ns += static_cast<double>(layer.counts.merge_ns);
    hot += static_cast<double>(layer_hot);
    all += static_cast<double>(layer_all);
  }
  live_tokens_ += static_cast<double>(tokens);
  if (all == 0) return;
  const double usual = drift_.usual();
  if (drift_.Add(static_cast<double>(tokens), hot / all)) {
    drift_alarm_ = true;
    drift_usual_ = usual;
    const double known = profile_->tokens();
    if (known > options_.tokens_kept_at_drift) {
      profile_->Forget(options_.tokens_kept_at_drift / known);
    }
  }
}

void TrafficModel::SetMemory(double times) {
  absl::MutexLock lock(&mu_);
  memory_ = times;
  if (profile_ != nullptr) profile_->SetMemory(times);
}

double TrafficModel::half_life_tokens() const {
  absl::MutexLock lock(&mu_);
  return options_.profile.half_life_tokens * memory_;
}

TrafficEstimate TrafficModel::Estimate() const {
  absl::MutexLock lock(&mu_);
  TrafficEstimate out;
  if (profile_ == nullptr) return out;
  out.profile = profile_->name();
  out.tokens = profile_->tokens();
  out.timed = costs_.known();
  if (out.timed) out.costs = costs_.costs();
  out.rows_per_step = costs_.rows_per_step();
  if (Learning()) out.learning_until = options_.learn_tokens;
  if (out.tokens <= 0) return out;
  if (learnt_tokens_ > 0)
    out.profile = out.profile == LiveProfile::kNothingKnown ? "live" : out.profile + " + live";
  const double row_bytes =
      static_cast<double>(shape_.bundle_bytes) / std::max(1, shape_.bundle_rows);
  const ReadsOptions reads{.first_row_bytes = row_bytes,
                           .rest_bytes = static_cast<double>(shape_.bundle_bytes) - row_bytes,
                           .rows_per_step = out.rows_per_step};
  const auto layers = static_cast<size_t>(shape_.num_layers);
  out.frequency.resize(layers);
  out.reads.resize(layers);
  out.error.resize(layers);
  for (size_t l = 0; l < layers; ++l) {
    LiveProfile::Layer layer = profile_->Get(l);
    ExpectedReads(layer, reads, &out.reads[l], &out.error[l]);
    out.frequency[l] = std::move(layer.predicted);
  }
  return out;
}

Measurement TrafficModel::Measured() const {
  absl::MutexLock lock(&mu_);
  Measurement out{.epoch = live_.epoch, .tokens = live_tokens_};
  double hot = 0, all = 0;
  for (const LayerSums& sums : live_sums_) {
    const auto micros = [&](double ns) { return sums.steps > 0 ? ns / sums.steps / 1000 : 0; };
    out.layers.push_back({.hit_share = sums.all > 0 ? sums.hot / sums.all : 1,
                          .gpu_us = micros(sums.gpu_ns),
                          .cpu_us = micros(sums.cpu_ns),
                          .wait_us = micros(sums.wait_ns),
                          .merge_us = micros(sums.merge_ns)});
    const Measurement::Layer& layer = out.layers.back();
    out.step_ns += 1000 * (layer.gpu_us + layer.wait_us + layer.merge_us);
    hot += sums.hot;
    all += sums.all;
  }
  out.hit_share = all > 0 ? hot / all : 0;
  return out;
}

StoredProfile TrafficModel::Snapshot() const {
  absl::MutexLock lock(&mu_);
  StoredProfile out;
  if (profile_ == nullptr) return out;
  out.model_digest = shape_.digest;
  out.name = profile_->name();
  out.total_tokens = total_tokens_;
  for (size_t l = 0; l < static_cast<size_t>(profile_->num_layers()); ++l) {
    out.layers.push_back(profile_->Get(l));
  }
  for (const auto& [id, instance] : instances_) out.last_sequence[id] = instance.last_sequence;
  return out;
}

TrafficModel::Freshness TrafficModel::freshness() const {
  absl::MutexLock lock(&mu_);
  Freshness out{.total_tokens = total_tokens_, .learning = Learning()};
  const Clock::TimePoint now = clock_.Now();
  if (seen_at_.has_value()) out.age = now - *seen_at_;
  if (worked_at_.has_value()) out.work_age = now - *worked_at_;
  return out;
}

TrafficModel::Drift TrafficModel::TakeDrift() {
  absl::MutexLock lock(&mu_);
  return {.alarm = std::exchange(drift_alarm_, false),
          .usual = drift_usual_,
          .recent = drift_.recent()};
}

TrafficModel::Counts TrafficModel::counts() const {
  absl::MutexLock lock(&mu_);
  return counts_;
}

}  // namespace isotherm
