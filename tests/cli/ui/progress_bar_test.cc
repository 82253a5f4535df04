#include "cli/ui/progress_bar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "cli/ui/remedy.h"
#include "cli/ui/share_bar.h"

namespace isotherm::cli {
namespace {

using ::testing::HasSubstr;

class FakeClock final : public Clock {
 public:
  TimePoint Now() const override { return now; }
  TimePoint now{};
};

TEST(ProgressBarTest, PrintsALineEachTenthOffATerminal) {
  std::ostringstream out, err;
  Console console{.out = out, .err = err};
  FakeClock clock;
  ProgressBar bar(console, "loading", 1'000'000, clock);
  for (int i = 1; i <= 1000; ++i) {
    clock.now += std::chrono::milliseconds(10);
    bar.Update(i * 1000);
  }
  bar.Finish();
  const std::string text = err.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
  EXPECT_THAT(text, HasSubstr("loading: 100 %  1.00 MB of 1.00 MB"));
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_EQ(out.str(), "");
}

TEST(ProgressBarTest, DrawsRateAndTimeLeftOnATerminal) {
  std::ostringstream out, err;
  Console console{.out = out, .err = err, .err_is_terminal = true, .width = 100};
  FakeClock clock;
  ProgressBar bar(console, "loading", 100'000'000, clock);
  clock.now += std::chrono::seconds(2);
  bar.Update(25'000'000);
  EXPECT_THAT(err.str(), HasSubstr("[######..................]  25 %"));
  EXPECT_THAT(err.str(), HasSubstr("12 MB/s  6 s left"));
}

TEST(ProgressBarTest, NeverExceedsTheTerminalAndNeverGoesBack) {
  std::ostringstream out, err;
  Console console{.out = out, .err = err, .err_is_terminal = true, .width = 30};
  FakeClock clock;
  ProgressBar bar(console, "a rather long label for this", 100, clock);
  for (const int64_t done : {50, 10, 5000}) {
    err.str("");
    clock.now += std::chrono::seconds(1);
    bar.Update(done);
    EXPECT_LE(err.str().find("\033[K"), 30u);
  }
}

TEST(FormatSecondsTest, UsesTwoUnitsAtMost) {
  EXPECT_EQ(FormatSeconds(0.2), "1 s");
  EXPECT_EQ(FormatSeconds(130), "2 min 10 s");
  EXPECT_EQ(FormatSeconds(3900), "1 h 5 min");
}

TEST(PrintErrorTest, EscapesControlBytesAndShowsTheRemedy) {
  std::ostringstream out, err;
  Console console{.out = out, .err = err};
  PrintError(console, WithTry(absl::NotFoundError("no \033[31mmodel"), "isotherm models ls"));
  EXPECT_EQ(err.str(), "isotherm: error: no \\x1b[31mmodel\n  try: isotherm models ls\n");
}

TEST(RemedyTest, KeepsTheOneNearestToTheCause) {
  EXPECT_EQ(TryOf(WithTry(WithTry(absl::InternalError("x"), "first"), "second")), "first");
  EXPECT_EQ(TryOf(absl::InternalError("x")), "");
}

TEST(ShareBarTest, FillsByShareAndClamps) {
  EXPECT_EQ(ShareBar(0.5, 4), "##..");
  EXPECT_EQ(ShareBar(7, 4), "####");
  EXPECT_EQ(ShareBar(-1, 4), "....");
  EXPECT_EQ(ShareBar(0.0 / 0.0, 4), "....");
}

}  // namespace
}  // namespace isotherm::cli
