#include "gateway/request/text_assembler.h"

#include <gtest/gtest.h>

#include <random>

namespace isotherm {
namespace {

struct Ended {
  std::string text;
  std::string stop;
};

// What must come out, found without streaming.
Ended Reference(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) {
      return {text.substr(0, include ? end : end - longest), text.substr(end - longest, longest)};
    }
  }
  return {text, ""};
}

Ended Stream(const std::vector<std::string>& parts, const std::vector<std::string>& stops,
             bool include) {
  TextAssembler assembler(stops, include);
  Ended ended;
  for (const std::string& part : parts) {
    TextAssembler::Output output = assembler.Append(part, true);
    ended.text += output.text;
    if (output.matched_stop.has_value()) {
      ended.stop = *output.matched_stop;
      return ended;
    }
  }
  ended.text += assembler.Finish();
  return ended;
}

TEST(TextAssemblerTest, AnySplitGivesTheSameTextAndStop) {
  std::mt19937_64 random(7);
  const std::vector<std::string> letters = {"a", "b", "ab", "\xC3\xA9", "\xF0\x9F\x98\x80", "\n"};
  const auto word = [&](size_t most) {
    std::string out;
    const size_t count = 1 + random() % most;
    for (size_t i = 0; i < count; ++i) out += letters[random() % letters.size()];
    return out;
  };
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = word(24);
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(word(4));
    const bool include = random() % 2 == 0;
    std::vector<std::string> parts;
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min<size_t>(1 + random() % 5, text.size() - at);
      parts.push_back(text.substr(at, length));
      at += length;
    }
    const Ended want = Reference(text, stops, include);
    const Ended got = Stream(parts, stops, include);
    ASSERT_EQ(got.text, want.text) << "round " << round;
    ASSERT_EQ(got.stop, want.stop) << "round " << round;
    stopped += want.stop.empty() ? 0 : 1;
  }
  EXPECT_GT(stopped, 1000);
}

TEST(TextAssemblerTest, EmojiCutAtEachByteComesWholeOrNotAtAll) {
  const std::string emoji = "\xF0\x9F\x98\x80";
  for (size_t cut = 1; cut < emoji.size(); ++cut) {
    TextAssembler assembler({}, false);
    EXPECT_EQ(assembler.Append("x" + emoji.substr(0, cut), true).text, "x");
    EXPECT_EQ(assembler.Append(emoji.substr(cut), true).text, emoji);
    TextAssembler unfinished({}, false);
    EXPECT_EQ(unfinished.Append(emoji.substr(0, cut), true).text + unfinished.Finish(), "");
  }
}

TEST(TextAssemblerTest, BytesThatFormNoCharacterBecomeReplacements) {
  const std::string fffd = "\xEF\xBF\xBD";
  const auto run = [](const std::string& bytes) {
    TextAssembler assembler({}, false);
    return assembler.Append(bytes, true).text;
  };
  EXPECT_EQ(run("a\xFF"
                "b"),
            "a" + fffd + "b");
  EXPECT_EQ(run("\xC0\xAF"), fffd + fffd);             // overlong
  EXPECT_EQ(run("\xED\xA0\x80"), fffd + fffd + fffd);  // surrogate
  EXPECT_EQ(run("\xF0\x9F\x98"
                "z"),
            fffd + "z");  // cut by another character
  EXPECT_EQ(run("\xF4\x90\x80\x80"), fffd + fffd + fffd + fffd);
}

TEST(TextAssemblerTest, TextThatMayBeginAStopStringWaits) {
  TextAssembler assembler({"\nUser:"}, false);
  EXPECT_EQ(assembler.Append("Hello\n", true).text, "Hello");
  EXPECT_EQ(assembler.Append("Us", true).text, "");
  EXPECT_EQ(assembler.Append("ual", true).text, "\nUsual");
  EXPECT_EQ(assembler.Append("\nUse", true).text, "");
  EXPECT_EQ(assembler.Finish(), "\nUse");
}

TEST(TextAssemblerTest, StopStringsDoNotCountBeforeTheyMay) {
  TextAssembler assembler({"ab"}, false);
  const TextAssembler::Output early = assembler.Append("xab", false);
  EXPECT_EQ(early.text, "xab");
  EXPECT_FALSE(early.matched_stop.has_value());
  EXPECT_TRUE(assembler.Append("yab", true).matched_stop.has_value());
}

}  // namespace
}  // namespace isotherm
