#include "common/base/units.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

TEST(UnitsTest, ParsesBytesWithBinaryAndDecimalUnits) {
  EXPECT_EQ(ParseBytes("8GiB").value(), int64_t{8} << 30);
  EXPECT_EQ(ParseBytes(" 1.5 KB ").value(), 1500);
  EXPECT_EQ(ParseBytes("32K").value(), 32768);
  EXPECT_EQ(ParseBytes("77").value(), 77);
}

TEST(UnitsTest, RefusesWhatIsNotASizeAndShowsTheForm) {
  for (const char* text : {"", "GiB", "-1", "1e400", "nan", "8 GiBs", "99999999TiB"}) {
    const auto bytes = ParseBytes(text);
    ASSERT_FALSE(bytes.ok()) << text;
    EXPECT_THAT(bytes.status().message(), testing::HasSubstr("8GiB"));
  }
}

TEST(UnitsTest, FormatsBytesWithThreeDigits) {
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(29924704), "29.9 MB");
  EXPECT_EQ(FormatBytes(150000000), "150 MB");
}

TEST(UnitsTest, ParsesDurations) {
  EXPECT_EQ(ParseDuration("250ms").value().count(), 250);
  EXPECT_EQ(ParseDuration("5m").value().count(), 300000);
  EXPECT_FALSE(ParseDuration("5 fortnights").ok());
}

}  // namespace
}  // namespace isotherm
