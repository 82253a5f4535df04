#include "cli/supervise/line_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/supervise/log_line.h"

namespace isotherm::cli {
namespace {

TEST(LineBufferTest, JoinsPiecesAndKeepsTheLastLine) {
  std::vector<std::string> lines;
  const auto take = [&](absl::string_view line) { lines.emplace_back(line); };
  LineBuffer buffer;
  for (const char* piece : {"a", "b\n", "\nc", "d\ne"}) buffer.Append(piece, take);
  buffer.Finish(take);
  EXPECT_THAT(lines, ::testing::ElementsAre("ab", "", "cd", "e"));
}

TEST(LineBufferTest, CutsALineWithoutEnd) {
  size_t total = 0;
  const auto take = [&](absl::string_view line) {
    EXPECT_LE(line.size(), LineBuffer::kMaxLineBytes);
    total += line.size();
  };
  LineBuffer buffer;
  const std::string piece(100'000, 'x');
  buffer.Append(piece, take);
  buffer.Finish(take);
  EXPECT_EQ(total, piece.size());
}

TEST(LogLineTest, ReadsARecordAndEscapesItsText) {
  const LogLine line = ParseLogLine("gateway", R"({"level":"error","msg":"a\u001b[0m\nb"})");
  EXPECT_TRUE(IsError(line));
  EXPECT_EQ(line.message, "a\\x1b[0m\\x0ab");
}

TEST(LogLineTest, TakesAnythingElseAsText) {
  for (const char* text : {"==1== ERROR", "{", "{\"level\":3,\"msg\":\"x\"}", ""}) {
    EXPECT_EQ(ParseLogLine("x", text).level, "") << text;
    EXPECT_EQ(ParseLogLine("x", text).message, text);
  }
}

}  // namespace
}  // namespace isotherm::cli
