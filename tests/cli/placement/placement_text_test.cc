#include "cli/placement/placement_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "cli/placement/placement_files.h"
#include "common/base/exit_code.h"
#include "models/profile/gpu_index.h"
#include "tests/models/temp_folder.h"

namespace isotherm::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

PlacementInfo Plan(int64_t epoch, std::vector<uint64_t> hot) {
  PlacementInfo plan{.epoch = epoch,
                     .etag = "e",
                     .budget_bytes = 1'000,
                     .used_bytes = 900,
                     .cause = "traffic",
                     .created_unix_ms = 1'764'547'200'000,
                     .profile = "chat + live",
                     .solver = "threshold",
                     .objective = 0.5};
  for (const uint64_t bits : hot) {
    plan.layers.push_back({.hot_neurons = std::popcount(bits),
                           .total_neurons = 8,
                           .predicted_hit_share = 0.25,
                           .hot = {bits}});
  }
  return plan;
}

TEST(PlacementTextTest, ShowsWhatIsExpectedAndWhatWasSeen) {
  PlacementInfo plan = Plan(7, {0b1111, 0b1});
  std::string text = PlanText(plan);
  EXPECT_THAT(text, HasSubstr("epoch 7, traffic, made 2025-12-01"));
  EXPECT_THAT(text, HasSubstr("31 % of the neurons hot"));
  EXPECT_THAT(text, HasSubstr("##############.............."));  // half of 28 cells
  EXPECT_THAT(text, Not(HasSubstr("hits seen")));
  EXPECT_THAT(text, Not(HasSubstr("pinned")));
  plan.pinned = true;
  plan.status = "pinned: the live plan stays as it is";
  plan.seen_tokens = 1'234;
  plan.seen_hit_share = 0.48;
  plan.seen = {{0.75, 10, 20, 5, 1}, {0.25, 1, 2, 3, 4}};
  text = PlanText(plan);
  EXPECT_THAT(text, HasSubstr(", pinned\n"));
  EXPECT_THAT(text, HasSubstr("seen over 1234 tokens: 48 %"));
  EXPECT_THAT(text, HasSubstr(" 75 %    10/20/5"));
  const nlohmann::ordered_json json = PlanJson(plan, true);
  EXPECT_EQ(json["epoch"], 7);
  EXPECT_EQ(json["pinned"], true);
  EXPECT_EQ(json["layers"][0]["hot_neurons"], 4);
  EXPECT_EQ(json["layers"][0]["seen_hit_share"], 0.75);
  EXPECT_EQ(json["layers"][1]["wait_us"], 3.0);
  EXPECT_FALSE(PlanJson(plan, false).contains("layers"));
}

TEST(PlacementTextTest, MemoryShowsEveryPurposeThatTakesAnyAndWhatIsLeftOver) {
  constexpr int64_t kMb = 1'000'000;
  PlacementInfo plan = Plan(7, {0b1});
  EXPECT_THAT(PlanText(plan), Not(HasSubstr("memory")));
  EXPECT_FALSE(PlanJson(plan, true).contains("memory"));
  MemoryInfo memory{.device = "H200",
                    .use = {.context = 100 * kMb,
                            .dense = 200 * kMb,
                            .kv = 100 * kMb,
                            .hot_pool = 400 * kMb,
                            .process = 1'000 * kMb,
                            .budget = 1'020 * kMb}};
  plan.memory = memory;
  std::string text = PlanText(plan);
  EXPECT_THAT(text, HasSubstr("memory of H200: 1.00 GB as the driver counts it, budget 1.02 GB\n"));
  EXPECT_THAT(text,
              HasSubstr("  hot neurons      ###########.................    40 %      400 MB"));
  EXPECT_THAT(text,
              HasSubstr("  modules, graphs  ######......................    20 %      200 MB"));
  EXPECT_THAT(text, Not(HasSubstr("predictors")));  // takes nothing
  const nlohmann::ordered_json json = PlanJson(plan, true)["memory"];
  EXPECT_EQ(json["device"], "H200");
  EXPECT_EQ(json["hot_pool_bytes"], 400 * kMb);
  EXPECT_EQ(json["predictor_bytes"], 0);
  EXPECT_EQ(json["other_bytes"], 200 * kMb);
  EXPECT_EQ(json["process_bytes"], 1'000 * kMb);
  EXPECT_EQ(json["budget_bytes"], 1'020 * kMb);

  plan.memory->use.budget = 900 * kMb;
  EXPECT_THAT(PlanText(plan), HasSubstr(", budget 900 MB, EXCEEDED by 100 MB\n"));

  // CPU threads: no driver counts them.
  plan.memory = {.device = "cpu", .use = {.kv = 3 * kMb, .hot_pool = kMb}};
  text = PlanText(plan);
  EXPECT_THAT(text, HasSubstr("memory that cpu keeps apart: 4.00 MB\n"));
  EXPECT_THAT(text, HasSubstr("  KV cache         #####################.......    75 %"));
  EXPECT_THAT(text, Not(HasSubstr("driver")));
  plan.memory = MemoryInfo{};
  EXPECT_THAT(PlanText(plan), Not(HasSubstr("memory")));
}

TEST(PlacementTextTest, HistorySaysWhyAndWhatCameOfIt) {
  std::vector<PlacementHistoryEntry> entries(2);
  entries[0] = {.plan = Plan(3, {1}), .state = "live", .moved_neurons = 12, .reason = "drift"};
  entries[0].measured_hit_share = 0.61;
  entries[0].measured_gain = 0.125;
  entries[1] = {
      .plan = Plan(2, {1}), .state = "failed", .message = "UNAVAILABLE: gone", .reason = "drift"};
  const std::string text = HistoryText(entries);
  EXPECT_THAT(text, HasSubstr("61 %  drift; measured -12.5 % layers' time"));
  EXPECT_THAT(text, HasSubstr("UNAVAILABLE: gone"));
  const nlohmann::ordered_json json = HistoryJson(entries);
  EXPECT_EQ(json[0]["measured_gain"], 0.125);
  EXPECT_FALSE(json[1].contains("measured_gain"));
}

TEST(PlacementTextTest, DiffCountsWhatComesGoesAndStays) {
  const PlacementInfo a = Plan(3, {0b1111, 0b0001}), b = Plan(5, {0b0011, 0b0110});
  const auto layers = DiffPlans(a, b);
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_EQ((*layers)[0].in, 0);
  EXPECT_EQ((*layers)[0].out, 2);
  EXPECT_EQ((*layers)[0].both, 2);
  EXPECT_EQ((*layers)[1].in, 2);
  EXPECT_EQ((*layers)[1].out, 1);
  EXPECT_THAT(DiffText(a, b, *layers),
              HasSubstr("epoch 3 (traffic) -> epoch 5 (traffic): 2 neurons come, 3 go, 2 stay; 50 "
                        "% of the smaller set is in both"));
  EXPECT_EQ(DiffJson(a, b, *layers)["overlap"], 0.5);
  EXPECT_EQ(ExitCodeOf(DiffPlans(a, Plan(6, {1})).status()), ExitCode::kBadData);
  PlacementInfo pruned = b;
  pruned.layers.clear();
  EXPECT_EQ(ExitCodeOf(DiffPlans(a, pruned).status()), ExitCode::kBadData);
}

TEST(PlacementTextTest, RecomputationsAndEventsTakeALine) {
  RecomputationInfo info{.id = "r1",
                         .state = "applied",
                         .ended = true,
                         .progress = 1,
                         .moved_neurons = 40,
                         .moved_bytes = 2'000,
                         .predicted_gain = 0.2,
                         .reason = "hit share rises"};
  info.proposal = Plan(9, {1});
  EXPECT_EQ(RecomputationText(info),
            "applied: hit share rises\n"
            "40 neurons moved, 2.00 kB copied; predicted -20.0 % layers' time\n"
            "epoch 9 is live\n");
  EXPECT_EQ(RecomputationJson(info)["proposal"]["epoch"], 9);
  EXPECT_THAT(EventText({.sequence = 1, .recomputation = info}), HasSubstr("r1 applied"));
  EXPECT_EQ(EventText({.alarm = "drift"}), "alarm: drift\n");
  EXPECT_THAT(EventText({.budget = BudgetInfo{.effective_bytes = 4'000}}), HasSubstr("4.00 kB"));
  EXPECT_THAT(EventText({.plan = Plan(4, {1}), .state = "live"}), HasSubstr("epoch 4 live"));
  EXPECT_EQ(EventJson({.sequence = 3, .alarm = "drift"})["alarm"], "drift");
}

TEST(PlacementFilesTest, ProfilesComeBack) {
  const TempFolder folder;
  const ProfileInfo profile{
      .name = "live", .predicted = {{0.5f, 0.25f}, {1, 0}}, .fired = {{0.5f, 0.125f}, {1, 0}}};
  ASSERT_TRUE(WriteProfileFile(folder.File("p.gguf"), profile).ok());
  EXPECT_FALSE(IsPlanFile(folder.File("p.gguf")));
  const auto read = ReadProfileFile(folder.File("p.gguf"), "");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->name, "live");
  EXPECT_EQ(read->predicted, profile.predicted);
  EXPECT_EQ(read->fired, profile.fired);
  const auto missing = ReadProfileFile(folder.File("p.gguf"), "chat");
  EXPECT_EQ(ExitCodeOf(missing.status()), ExitCode::kBadData);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("live, live.fired"));
}

TEST(PlacementFilesTest, PlansGoToPowerInfersFormAndBack) {
  const TempFolder folder;
  const std::string path = folder.File("m.generated.gpuidx");
  EXPECT_TRUE(IsPlanFile(path));  // by its ending, as long as it is not there
  ASSERT_TRUE(WritePlanFile(path, Plan(3, {0b1011, 0})).ok());
  EXPECT_TRUE(IsPlanFile(path));
  const auto read = ReadPlanFile(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->source, "m.generated.gpuidx");
  EXPECT_EQ(read->num_neurons, 8);
  EXPECT_EQ(read->hot, (std::vector<std::vector<uint64_t>>{{0b1011}, {0}}));
  EXPECT_EQ(ReadGpuIndex(path)->vram_capacity, 1'000);
}

}  // namespace
}  // namespace isotherm::cli
