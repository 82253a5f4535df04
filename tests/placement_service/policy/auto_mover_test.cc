// When neurons move, on simulated traffic with an injected clock: days in seconds.
#include "placement_service/policy/auto_mover.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/fakes/fake_clock.h"

namespace isotherm {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

constexpr int64_t kLayers = 3, kNeurons = 256, kBundleBytes = 30;
constexpr int64_t kBudget = kLayers * kNeurons * kBundleBytes / 5;
constexpr uint64_t kTokensASecond = 100;

// Traffic of one kind: how often each neuron fires, and seconds of counts drawn from that. Seconds
// differ more than tokens drawn one by one would: each has a topic that shifts every frequency.
class Workload {
 public:
  Workload(std::vector<std::vector<double>> frequency, unsigned seed, int num_seconds = 200)
      : frequency_(std::move(frequency)) {
    std::mt19937 random(seed);
    std::normal_distribution<double> topic(0, 0.25), noise(0, 1);
    for (int s = 0; s < num_seconds; ++s) {
      std::vector<std::vector<uint32_t>> second(kLayers);
      for (size_t l = 0; l < kLayers; ++l) {
        for (const double share : frequency_[l]) {
          const double p = std::clamp(share * std::exp(topic(random)), 0.0, 1.0);
          const double mean = p * kTokensASecond;
          const double count = mean + noise(random) * std::sqrt(mean * (1 - p));
          second[l].push_back(static_cast<uint32_t>(
              std::clamp(std::round(count), 0.0, static_cast<double>(kTokensASecond))));
        }
      }
      seconds_.push_back(std::move(second));
    }
  }
  const std::vector<std::vector<uint32_t>>& Second(size_t n) const {
    return seconds_[n * 7919 % seconds_.size()];
  }
  const std::vector<std::vector<double>>& frequency() const { return frequency_; }

 private:
  std::vector<std::vector<double>> frequency_;
  std::vector<std::vector<std::vector<uint32_t>>> seconds_;
};

// p(u) = m (b + 1) (1 - u)^b of ranks u; a share of the ranks is dealt anew.
std::vector<std::vector<double>> Frequencies(double redealt, unsigned seed) {
  std::mt19937 base(1), random(seed);
  std::vector<std::vector<double>> out(kLayers);
  for (auto& layer : out) {
    for (int64_t n = 0; n < kNeurons; ++n) {
      layer.push_back(0.15 * 2.9 * std::pow(1 - static_cast<double>(n) / kNeurons, 1.9));
    }
    std::shuffle(layer.begin(), layer.end(), base);
    std::vector<size_t> ids;
    for (size_t n = 0; n < layer.size(); ++n) {
      if (static_cast<double>(random() % 1000) < 1000 * redealt) ids.push_back(n);
    }
    std::vector<double> values;
    for (const size_t id : ids) values.push_back(layer[id]);
    std::shuffle(values.begin(), values.end(), random);
    for (size_t i = 0; i < ids.size(); ++i) layer[ids[i]] = values[i];
  }
  return out;
}

std::vector<std::vector<double>> Mixture(const std::vector<std::vector<double>>& a,
                                         const std::vector<std::vector<double>>& b) {
  std::vector<std::vector<double>> out = a;
  for (size_t l = 0; l < out.size(); ++l) {
    for (size_t n = 0; n < out[l].size(); ++n) out[l][n] = (a[l][n] + b[l][n]) / 2;
  }
  return out;
}

// Share of activations that the best hot set of the budget has.
double BestShare(const std::vector<std::vector<double>>& frequency,
                 const std::vector<std::vector<double>>& of) {
  std::vector<std::pair<double, double>> all;
  double sum = 0;
  for (size_t l = 0; l < frequency.size(); ++l) {
    for (size_t n = 0; n < frequency[l].size(); ++n) {
      all.push_back({frequency[l][n], of[l][n]});
      sum += of[l][n];
    }
  }
  std::sort(all.rbegin(), all.rend());
  double hot = 0;
  for (int64_t i = 0; i < kBudget / kBundleBytes; ++i) hot += all[static_cast<size_t>(i)].second;
  return hot / sum;
}

// One simulated second after the other: traffic is counted and reported, the mover is asked, a
// move is live before the next; one that exceeds the spare room only after several epochs.
class Simulation {
 public:
  explicit Simulation(AutoMoverOptions options = {}) : mover_(options, traffic_, clock_) {
    ChangeModel("model");
    traffic_.SetWorkers("gpu", "");
  }
  void ChangeModel(const std::string& digest) {
    digest_ = digest;
    traffic_.SetModel({.digest = digest,
                       .num_layers = kLayers,
                       .num_neurons = kNeurons,
                       .bundle_bytes = kBundleBytes},
                      std::nullopt);
  }

  // The plan of someone who knows the frequencies, live at the start.
  void StartWith(const std::vector<std::vector<double>>& frequency, bool as_prior) {
    std::vector<std::vector<float>> shares;
    for (const auto& layer : frequency) shares.emplace_back(layer.begin(), layer.end());
    if (as_prior) traffic_.SetPrior("chat", shares, {}, 0);
    const auto plan = SolvePlacement(
        {.layers = Layers(), .frequency = shares, .bins = {{.budget_bytes = kBudget}}});
    ASSERT_TRUE(plan.ok());
    GoLive(*plan);
  }

  // Runs `duration` seconds of traffic, reported every `step` seconds; returns the share of its
  // activations that were hot.
  double Run(int duration, const std::function<const Workload&(int)>& workload, int step = 1) {
    double hot = 0, all = 0;
    for (int s = 0; s < duration; s += step) {
      clock_.Advance(seconds(step));
      const auto& counts = workload(s).Second(second_++);
      Report(counts, static_cast<uint32_t>(step));
      for (size_t l = 0; l < kLayers; ++l) {
        for (size_t n = 0; n < kNeurons; ++n) {
          all += counts[l][n];
          hot += (live_.layers[l].hot[n / 64] >> (n % 64) & 1) != 0 ? counts[l][n] : 0;
        }
      }
      if (arrives_in_ == 0) Ask();
      if (arrives_in_ > 0 && --arrives_in_ == 0) GoLive(std::exchange(arriving_, PlacementPlan()));
    }
    return hot / all;
  }
  double Run(int duration, const Workload& workload, int step = 1) {
    return Run(
        duration, [&](int) -> const Workload& { return workload; }, step);
  }
  void Ask() {
    const std::optional<MoveDecision> decision = mover_.Consider(
        {.layers = Layers(), .budget_bytes = kBudget, .spare_bytes = spare_bytes_, .live = &live_});
    for (std::string& alarm : mover_.TakeAlarms()) alarms_.push_back(std::move(alarm));
    if (!decision.has_value()) return;
    mover_.Moved(*decision, live_.layers);
    moved_bytes_ += decision->in_bytes;
    largest_move_ = std::max(largest_move_, decision->in_bytes);
    ++moves_;
    if (decision->in_bytes <= spare_bytes_) return GoLive(decision->plan);
    // Each epoch makes twice the room of the one before; a second for each, all live at the end.
    for (int64_t left = decision->in_bytes, room = spare_bytes_; left > 0; room *= 2) {
      left -= room;
      ++arrives_in_;
    }
    arriving_ = decision->plan;
  }
  void Report(const std::vector<std::vector<uint32_t>>& counts, uint32_t step = 1) {
    TelemetryReport report{.instance_id = "gpu",
                           .model_digest = digest_,
                           .sequence = ++sequence_,
                           .epoch = live_.epoch,
                           .steps = step * kTokensASecond,
                           .num_neurons = kNeurons};
    report.layers.resize(kLayers);
    for (size_t l = 0; l < kLayers; ++l) {
      report.layers[l].counts.tokens = step * kTokensASecond;
      for (const uint32_t count : counts[l]) report.layers[l].predicted.push_back(step * count);
      report.layers[l].fired = report.layers[l].predicted;
    }
    EXPECT_TRUE(traffic_.Accept(report).ok());
  }
  void GoLive(PlacementPlan plan) {
    plan.epoch = live_.epoch + 1;
    live_ = std::move(plan);
    traffic_.SetLive(live_);
  }
  static std::vector<LayerGeometry> Layers() {
    return std::vector<LayerGeometry>(kLayers, {kNeurons, kBundleBytes});
  }
  // Of activations that come with these frequencies.
  double LiveShare(const std::vector<std::vector<double>>& frequency) const {
    double hot = 0, all = 0;
    for (size_t l = 0; l < kLayers; ++l) {
      for (size_t n = 0; n < kNeurons; ++n) {
        all += frequency[l][n];
        hot += (live_.layers[l].hot[n / 64] >> (n % 64) & 1) != 0 ? frequency[l][n] : 0;
      }
    }
    return hot / all;
  }
  // How many times the hot set was copied in.
  double turnovers() const { return static_cast<double>(moved_bytes_) / kBudget; }

  FakeClock clock_;
  TrafficModel traffic_{TrafficOptions(), clock_};
  AutoMover mover_;
  PlacementPlan live_, arriving_;
  int arrives_in_ = 0;  // seconds; 0: nothing is on its way
  int64_t spare_bytes_ = kBudget;
  std::string digest_;
  std::vector<std::string> alarms_;
  int64_t moved_bytes_ = 0, largest_move_ = 0, sequence_ = 0;
  int moves_ = 0;
  size_t second_ = 0;
};

const Workload& Chat() {
  static const Workload workload(Frequencies(0, 1), 11);
  return workload;
}
const Workload& Book() {
  static const Workload workload(Frequencies(0.5, 2), 12);
  return workload;
}
const Workload& Code() {
  static const Workload workload(Frequencies(0.5, 3), 13);
  return workload;
}

constexpr int kHour = 3'600, kDay = 24 * kHour;
// Days are reported every ten seconds: the same tokens, a tenth of the arithmetic.
constexpr int kDayStep = 10;

PlacementPlan EvenPlan() {
  return *SolvePlacement({.layers = Simulation::Layers(), .bins = {{.budget_bytes = kBudget}}});
}

// Without a prior nobody chose the first hot set. Room beside it for a move: all that it takes, or
// the little that a GPU has.
class ColdStartTest : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Spare, ColdStartTest, testing::Values(1.0, 0.015));

TEST_P(ColdStartTest, ReachesTheBestPlansHitsWithinAThousandTokens) {
  Simulation simulation;
  simulation.spare_bytes_ = static_cast<int64_t>(GetParam() * kBudget);
  simulation.GoLive(EvenPlan());
  const auto& frequency = Chat().frequency();
  const double best = BestShare(frequency, frequency);
  ASSERT_LT(simulation.LiveShare(frequency), 0.5 * best);
  int64_t reached = -1;
  for (int s = 1; s <= 40; ++s) {
    simulation.Run(1, Chat());
    const int64_t tokens = s * static_cast<int64_t>(kTokensASecond);
    const double share = simulation.LiveShare(frequency) / best;
    if (reached < 0 && share >= 0.95) reached = tokens;
    if (tokens % 1'000 == 0) RecordProperty(absl::StrCat("share_", tokens), absl::StrCat(share));
  }
  RecordProperty("tokens_to_95_percent", std::to_string(reached));
  RecordProperty("turnovers", absl::StrCat(simulation.turnovers()));
  EXPECT_GT(reached, 0);
  EXPECT_LE(reached, 1'000);
  EXPECT_GT(simulation.LiveShare(frequency), 0.98 * best);
  // What moves early and wrongly is a small part of it.
  EXPECT_LT(simulation.turnovers(), 1.5);
  EXPECT_EQ(simulation.alarms_.size(), 0u);
}

TEST(AutoMoverTest, WhatWasLearntFromNothingSettles) {
  Simulation simulation;
  simulation.GoLive(EvenPlan());
  simulation.Run(60, Chat());
  const double settled = simulation.turnovers();
  const double best = BestShare(Chat().frequency(), Chat().frequency());
  EXPECT_GT(simulation.Run(kDay, Chat(), kDayStep), 0.98 * best);
  EXPECT_LT(simulation.turnovers() - settled, 1);
  EXPECT_EQ(simulation.alarms_.size(), 0u);
}

TEST(AutoMoverTest, MovesNothingByItselfAtARateOfZero) {
  Simulation cold({.moves_per_second = 0});
  cold.GoLive(EvenPlan());
  cold.Run(60, Chat());
  EXPECT_EQ(cold.moves_, 0);
  Simulation profiled({.moves_per_second = 0});
  profiled.StartWith(Chat().frequency(), /*as_prior=*/true);
  profiled.Run(60, Chat());
  profiled.Run(60, Book());
  EXPECT_EQ(profiled.moves_, 0);
  EXPECT_EQ(profiled.alarms_.size(), 1u);  // which lifts no such cap
}

class TrafficChangeTest : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Spare, TrafficChangeTest, testing::Values(1.0, 0.015));

TEST_P(TrafficChangeTest, RegainsTheBestShareWithinTwoThousandTokens) {
  Simulation simulation;
  simulation.spare_bytes_ = static_cast<int64_t>(GetParam() * kBudget);
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  simulation.Run(300, Chat());
  const double best = BestShare(Book().frequency(), Book().frequency());
  const double stale = BestShare(Chat().frequency(), Book().frequency());
  ASSERT_LT(stale, 0.85 * best);
  EXPECT_LT(simulation.Run(1, Book()), 0.87 * best);
  int64_t reached = -1;
  for (int s = 2; s <= 20; ++s) {
    simulation.Run(1, Book());
    if (reached < 0 && simulation.LiveShare(Book().frequency()) >= 0.95 * best) {
      reached = s * static_cast<int64_t>(kTokensASecond);
    }
  }
  RecordProperty("tokens_to_95_percent", std::to_string(reached));
  EXPECT_GT(reached, 0);
  EXPECT_GT(simulation.Run(20, Book()), 0.95 * best);
  ASSERT_FALSE(simulation.alarms_.empty());
  EXPECT_THAT(simulation.alarms_[0], HasSubstr("drift"));
}

TEST(AutoMoverTest, ADayOfTheSameTrafficSettles) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  const double best = BestShare(Chat().frequency(), Chat().frequency());
  const double share = simulation.Run(kDay, Chat(), kDayStep);
  EXPECT_GT(share, 0.98 * best);
  EXPECT_LT(simulation.turnovers(), 1);  // in a day
  EXPECT_EQ(simulation.alarms_.size(), 0u);
}

TEST(AutoMoverTest, DayAndNightAreFollowed) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  const double best = (BestShare(Chat().frequency(), Chat().frequency()) +
                       BestShare(Code().frequency(), Code().frequency())) /
                      2;
  const double share = simulation.Run(
      2 * kDay,
      [](int s) -> const Workload& { return s / (12 * kHour) % 2 == 0 ? Chat() : Code(); },
      kDayStep);
  EXPECT_GT(share, 0.97 * best);
  EXPECT_LT(simulation.turnovers(), 4);  // three changes, each of half the set
}

// Traffic that swings faster than following it pays: the plan becomes that of the mixture.
struct Swing {
  int period = 0;  // seconds
  bool cold = false;
};
class SwingTest : public testing::TestWithParam<Swing> {};
INSTANTIATE_TEST_SUITE_P(Periods, SwingTest,
                         testing::Values(Swing{4}, Swing{20}, Swing{60}, Swing{300}, Swing{1'200}));
INSTANTIATE_TEST_SUITE_P(FromNothing, SwingTest,
                         testing::Values(Swing{20, true}, Swing{300, true}));

TEST_P(SwingTest, DoesNotThrash) {
  const int period = GetParam().period;
  // A second a report where a swing takes some seconds, and fewer hours then.
  const int step = period < 300 ? 1 : 10;
  const int hours = period < 300 ? 4 : 24;
  Simulation simulation;
  if (GetParam().cold) {
    simulation.GoLive(EvenPlan());
  } else {
    simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  }
  const auto swing = [&](int s) -> const Workload& {
    return s / (period / 2) % 2 == 0 ? Chat() : Book();
  };
  simulation.Run(kHour, swing, step);
  const double settled = simulation.turnovers();
  const double share = simulation.Run(hours * kHour, swing, step);
  const auto mixture = Mixture(Chat().frequency(), Book().frequency());
  const double still = BestShare(mixture, mixture);
  // Copies cost what they read and write; that is the share of all bundles read that they stand
  // for.
  const double turnovers = simulation.turnovers() - settled;
  const double read = 0.15 * kLayers * kNeurons * kTokensASecond * hours * kHour;  // bundles
  const double cost = 2 * turnovers * kBudget / kBundleBytes / read;
  RecordProperty("turnovers_per_hour", std::to_string(turnovers / hours));
  RecordProperty("share", std::to_string(share));
  RecordProperty("still", std::to_string(still));
  // As good as the best plan that never moves, but for what learning costs; and moves that go on
  // pay for themselves.
  EXPECT_GT(share - cost, 0.97 * still);
  EXPECT_TRUE(turnovers < 0.5 * hours || share - cost > still)
      << turnovers << " turnovers, share " << share << ", still " << still << ", cost " << cost;
  // No swing of a minute lasts long enough to be followed.
  EXPECT_LT(turnovers, (period <= 60 ? 0.5 : 10) * hours);
  EXPECT_LE(simulation.alarms_.size(), 40u);
}

TEST(AutoMoverTest, SlowDriftIsFollowedWithoutAlarm) {
  // Ten steps from one kind of traffic to another over a day.
  std::vector<Workload> steps;
  for (int i = 0; i <= 10; ++i) {
    auto frequency = Chat().frequency();
    for (size_t l = 0; l < frequency.size(); ++l) {
      for (size_t n = 0; n < frequency[l].size(); ++n) {
        frequency[l][n] += (Book().frequency()[l][n] - frequency[l][n]) * i / 10;
      }
    }
    steps.emplace_back(std::move(frequency), static_cast<unsigned>(100 + i), 50);
  }
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  double best = 0;
  for (const Workload& step : steps) best += BestShare(step.frequency(), step.frequency()) / 11;
  const double share = simulation.Run(
      kDay, [&](int s) -> const Workload& { return steps[static_cast<size_t>(s) * 11 / kDay]; },
      kDayStep);
  EXPECT_GT(share, 0.97 * best);
  EXPECT_LE(simulation.alarms_.size(), 2u);
  EXPECT_LT(simulation.turnovers(), 4);
}

TEST(AutoMoverTest, NoMoveIsLargerThanItsCap) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  simulation.Run(100, Chat());
  EXPECT_LE(simulation.largest_move_, 0.05 * kBudget + 1);  // 1 % a second, saved for five
  simulation.Run(100, Book());
  EXPECT_GT(simulation.largest_move_, 0.05 * kBudget);  // the alarm lifted it
  EXPECT_LE(simulation.largest_move_, 1.25 * kBudget);
}

TEST(AutoMoverTest, StaleTelemetryFreezesThePlan) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  simulation.Run(30, Chat());
  const int64_t epoch = simulation.live_.epoch;
  // The last report says that everything changed, then nothing more comes.
  for (int i = 0; i < 5; ++i) simulation.Report(Book().Second(static_cast<size_t>(i)));
  simulation.clock_.Advance(seconds(11));
  for (int s = 0; s < 100; ++s) {
    simulation.clock_.Advance(seconds(1));
    simulation.Ask();
  }
  EXPECT_EQ(simulation.live_.epoch, epoch);
  EXPECT_THAT(simulation.mover_.status(), HasSubstr("frozen"));
  ASSERT_EQ(simulation.alarms_.size(), 2u);  // drift, seen but not answered
  EXPECT_THAT(simulation.alarms_[1], HasSubstr("stale"));
  simulation.Run(30, Book());
  EXPECT_GT(simulation.live_.epoch, epoch);
}

TEST(AutoMoverTest, AnotherModelIsFollowedFromItsFirstTokens) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/true);
  simulation.Run(kHour, Chat(), kDayStep);
  const int moves = simulation.moves_;
  // The same shape, other weights: nothing of what was learnt holds.
  simulation.ChangeModel("other");
  simulation.StartWith(Code().frequency(), /*as_prior=*/false);
  simulation.Run(60, Book());
  EXPECT_GT(simulation.moves_, moves);
  EXPECT_GT(simulation.Run(60, Book()), 0.95 * BestShare(Book().frequency(), Book().frequency()));
}

TEST(AutoMoverTest, NothingMovesWithoutReportsOrTokens) {
  Simulation simulation;
  simulation.StartWith(Chat().frequency(), /*as_prior=*/false);
  for (int s = 0; s < 100; ++s) {
    simulation.clock_.Advance(seconds(1));
    simulation.Ask();
  }
  EXPECT_EQ(simulation.moves_, 0);
  EXPECT_TRUE(simulation.alarms_.empty());
}

}  // namespace
}  // namespace isotherm
