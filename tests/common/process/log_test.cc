#include "common/process/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/unique_fd.h"

namespace isotherm {
namespace {

// stderr goes elsewhere while this lives.
class RedirectedStderr {
 public:
  explicit RedirectedStderr(int to) : saved_(::dup(STDERR_FILENO)) { ::dup2(to, STDERR_FILENO); }
  ~RedirectedStderr() { ::dup2(saved_.get(), STDERR_FILENO); }

 private:
  const UniqueFd saved_;
};

TEST(LogTest, WhateverATextHoldsARecordIsOneLineOfJson) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(InitLogging("log-test", "info").ok());
  const std::vector<std::string> texts = {"plain",
                                          "two\nlines\r\n",
                                          "\033[31mred\033[0m \x07",
                                          "quote \" backslash \\ {}",
                                          std::string("nul \0 byte", 10),
                                          "not UTF-8 \xff\xfe",
                                          std::string(100'000, 'x')};
  for (const std::string& text : texts) LogInfo("{}", text);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), static_cast<int64_t>(texts.size()));
  size_t at = 0;
  for (const std::string& text : texts) {
    const size_t end = log.find('\n', at);
    const auto record = nlohmann::json::parse(log.substr(at, end - at), nullptr, false);
    at = end + 1;
    ASSERT_TRUE(record.is_object()) << text;
    EXPECT_EQ(record["service"], "log-test");
    EXPECT_EQ(record["level"], "info");
    EXPECT_EQ(record["msg"].get<std::string>().substr(0, 4), text.substr(0, 4));
  }
  for (const char byte : log) EXPECT_TRUE(byte == '\n' || static_cast<uint8_t>(byte) >= 0x20);
}

TEST(LogTest, AFullOrClosedSinkIsNoError) {
  ::signal(SIGPIPE, SIG_IGN);  // as ShutdownSignal does in every service
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd broken(pipe_fds[1]);
  ::close(pipe_fds[0]);
  for (const int sink : {full.get(), broken.get()}) {
    const RedirectedStderr redirected(sink);
    ASSERT_TRUE(InitLogging("log-test", "info").ok());
    for (int i = 0; i < 100; ++i) LogError("record {}", i);
  }
}

TEST(LogTest, UnknownLevelsAreNamedWithTheKnown) {
  const absl::Status status = InitLogging("log-test", "loud");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(std::string(status.message()).find("debug"), std::string::npos);
}

TEST(EscapeControlTest, LeavesNoByteThatMovesATerminal) {
  EXPECT_EQ(EscapeControl("a\x1b[2J\n\x7f b"), "a\\x1b[2J\\x0a\\x7f b");
}

}  // namespace
}  // namespace isotherm
