#include "bench/e2e/drift/drift_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

namespace isotherm::bench {
namespace {

using testing::HasSubstr;
using testing::Optional;

std::vector<DriftRow> Rows(const std::string& name, const std::string& tokens,
                           const std::vector<double>& speeds) {
  std::vector<DriftRow> rows;
  for (const double speed : speeds) {
    rows.push_back({.name = name,
                    .tokens = tokens,
                    .done = 200 * (static_cast<int64_t>(rows.size()) + 1),
                    .tokens_per_second = speed});
  }
  return rows;
}

std::vector<DriftRow> Together(const std::vector<std::vector<DriftRow>>& parts) {
  std::vector<DriftRow> rows;
  for (const auto& part : parts) rows.insert(rows.end(), part.begin(), part.end());
  return rows;
}

TEST(DriftSummaryTest, SaysWhatTheRowsSayTogether) {
  // 2,600 tokens after the change in requests of 200: the first two, and those from 2,000 on.
  std::vector<double> after(13, 50);
  after[0] = 60;
  after[1] = 62;
  after[10] = 80;
  after[11] = 90;
  after[12] = 85;
  const DriftSummary summary = Summarize(Together(
      {Rows("live", "designed", {40, 70, 99, 101}), Rows("live", "drifted", after),
       Rows("fresh", "drifted", {100, 100, 98}), Rows("static", "designed", {99}),
       Rows("static", "drifted", {61, 61}), Rows("cold", "designed", {40, 96, 60, 95, 97, 99})}));
  EXPECT_THAT(summary.before, Optional(100));  // not while the first plan came
  EXPECT_THAT(summary.just_after, Optional(61));
  EXPECT_THAT(summary.later, Optional(85));
  EXPECT_THAT(summary.fresh, Optional(100));
  EXPECT_THAT(summary.still, Optional(61));
  EXPECT_THAT(summary.cold_first, Optional(40));
  EXPECT_THAT(summary.cold_tokens_to_95, Optional(800));  // not the lucky one at 400
  const auto json = nlohmann::json::parse(ToJson(summary));
  EXPECT_EQ(json["figure"], "drift_summary");
  EXPECT_EQ(json["cold_tokens_to_95_percent"], 800);
  EXPECT_DOUBLE_EQ(json["2000_later_of_fresh"], 0.85);
}

TEST(DriftSummaryTest, WhatWasNotMeasuredIsNull) {
  const DriftSummary summary = Summarize(Rows("cold", "designed", {40, 90, 90}));
  EXPECT_THAT(summary.cold_first, Optional(40));
  EXPECT_FALSE(summary.cold_tokens_to_95.has_value());  // of which speed?
  const auto json = nlohmann::json::parse(ToJson(summary));
  EXPECT_TRUE(json["before"].is_null());
  EXPECT_TRUE(json["2000_later_of_fresh"].is_null());
}

TEST(DriftSummaryTest, ShorterPhasesAreScaled) {
  std::vector<DriftRow> rows =
      Rows("live", "drifted", {60, 62, 50, 50, 50, 50, 50, 50, 50, 50, 80});
  for (DriftRow& row : rows) row.done /= 20;
  const DriftSummary summary = Summarize(rows, 20);
  EXPECT_THAT(summary.just_after, Optional(61));
  EXPECT_THAT(summary.later, Optional(80));
}

TEST(DriftSummaryTest, ReadsItsRowsAndRefusesOthers) {
  std::istringstream good(
      R"({"name":"live","figure":"drift","tokens":"designed","done":200,"tokens_per_second":35.5,"hit_share":0.5,"epoch":1})"
      "\n\n"
      R"({"figure":"drift_summary","before":1})"
      "\n");
  const auto rows = ReadDriftRows(good);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ((*rows)[0].name, "live");
  EXPECT_EQ((*rows)[0].done, 200);
  EXPECT_EQ((*rows)[0].tokens_per_second, 35.5);
  for (const char* bad : {"{\"figure\":\"drift\"", "7", "{\"figure\":\"drift\",\"name\":3}"}) {
    std::istringstream lines(std::string("\n") + bad);
    EXPECT_THAT(std::string(ReadDriftRows(lines).status().message()), HasSubstr("line 2")) << bad;
  }
}

}  // namespace
}  // namespace isotherm::bench
