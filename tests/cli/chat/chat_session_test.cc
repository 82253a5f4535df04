#include "cli/chat/chat_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <sstream>

#include "cli/chat/interruptible_client.h"
#include "cli/chat/line_reader.h"
#include "common/base/error_reason.h"
#include "tests/cli/fakes/fake_inference_client.h"

namespace isotherm::cli {
namespace {

using ::testing::HasSubstr;

class ChatSessionTest : public ::testing::Test {
 protected:
  ChatSession Chat(bool json = false) {
    return ChatSession(client_, console_, {}, "Be kind.", json);
  }
  std::vector<std::string> Roles(const ChatSession& chat) {
    std::vector<std::string> roles;
    for (const ChatTurn& turn : chat.history()) roles.push_back(turn.role);
    return roles;
  }

  std::ostringstream out_, err_;
  Console console_{.out = out_, .err = err_};
  FakeInferenceClient client_;
};

TEST_F(ChatSessionTest, SendsTheWholeConversation) {
  client_.answers = {{.texts = {"Hel", "lo"}}, {.texts = {"Fine\n"}}};
  ChatSession chat = Chat();
  EXPECT_EQ(chat.HandleLine("  hi "), ChatSession::Next::kGoOn);
  chat.HandleLine("how are you");
  ASSERT_EQ(client_.asked.size(), 2u);
  ASSERT_EQ(client_.asked[1].turns.size(), 4u);
  EXPECT_EQ(client_.asked[1].turns[0].content, "Be kind.");
  EXPECT_EQ(client_.asked[1].turns[1].content, "hi");
  EXPECT_EQ(client_.asked[1].turns[2].content, "Hello");
  EXPECT_NE(client_.asked[0].request_id, client_.asked[1].request_id);
  EXPECT_EQ(out_.str(), "Hello\nFine\n");
}

TEST_F(ChatSessionTest, ResetForgetsAllButTheSystemMessage) {
  client_.answers = {{.texts = {"a"}}};
  ChatSession chat = Chat();
  chat.HandleLine("hi");
  chat.HandleLine("/reset");
  EXPECT_EQ(Roles(chat), (std::vector<std::string>{"system"}));
}

TEST_F(ChatSessionTest, AFailedQuestionLeavesTheHistoryAsItWas) {
  client_.answers = {{.texts = {"part"}, .status = absl::AbortedError("step failed")}};
  ChatSession chat = Chat();
  chat.HandleLine("hi");
  EXPECT_EQ(Roles(chat), (std::vector<std::string>{"system"}));
  EXPECT_THAT(err_.str(), HasSubstr("error: step failed"));
  EXPECT_FALSE(chat.last_status().ok());
}

TEST_F(ChatSessionTest, AFullContextSuggestsAReset) {
  client_.answers = {{.status = WithErrorReason(absl::InvalidArgumentError("too long"),
                                                {.reason = "CONTEXT_LENGTH_EXCEEDED"})}};
  Chat().HandleLine("hi");
  EXPECT_THAT(err_.str(), HasSubstr("try: /reset"));
}

TEST_F(ChatSessionTest, AStoppedAnswerStaysInTheHistory) {
  client_.answers = {{.texts = {"par"}, .status = absl::CancelledError("")}};
  ChatSession chat = Chat();
  chat.HandleLine("hi");
  EXPECT_EQ(chat.history().back().content, "par");
  EXPECT_TRUE(chat.last_status().ok());
  EXPECT_THAT(err_.str(), HasSubstr("stopped"));
}

TEST_F(ChatSessionTest, StatsAddUp) {
  const GenerateStats stats{.completion_tokens = 11, .decode_ms = 100};
  client_.answers = {{.texts = {"a"}, .stats = stats}, {.texts = {"b"}, .stats = stats}};
  ChatSession chat = Chat();
  chat.HandleLine("/stats");
  EXPECT_THAT(err_.str(), HasSubstr("no answer yet"));
  chat.HandleLine("1");
  chat.HandleLine("2");
  chat.HandleLine("/stats");
  EXPECT_THAT(err_.str(), HasSubstr("all 2 answers: 22 tokens, 100.0 tokens/s"));
}

TEST_F(ChatSessionTest, UnknownCommandsAreNotSent) {
  ChatSession chat = Chat();
  EXPECT_EQ(chat.HandleLine("/rest"), ChatSession::Next::kGoOn);
  EXPECT_EQ(chat.HandleLine("   "), ChatSession::Next::kGoOn);
  EXPECT_TRUE(client_.asked.empty());
  EXPECT_EQ(chat.HandleLine("/exit"), ChatSession::Next::kExit);
}

TEST_F(ChatSessionTest, JsonIsOneObjectATurn) {
  client_.answers = {{.texts = {"a\n", "b"}}};
  Chat(/*json=*/true).HandleLine("hi");
  EXPECT_THAT(out_.str(), HasSubstr(R"("content":"a\nb")"));
  const std::string text = out_.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
}

// Answers only once it was aborted, as a long answer does.
class BlockingClient final : public InferenceClient {
 public:
  absl::StatusOr<GenerateStats> Generate(const GenerateParams&, TextSink& sink) override {
    sink.OnText("first");
    ::kill(::getpid(), SIGINT);
    std::unique_lock lock(mu);
    aborted_changed.wait(lock, [this] { return !aborted.empty(); });
    return absl::CancelledError("aborted");
  }
  absl::Status Abort(absl::string_view request_id) override {
    std::lock_guard lock(mu);
    aborted = std::string(request_id);
    aborted_changed.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<int32_t>> Tokenize(absl::string_view) override {
    return std::vector<int32_t>();
  }
  absl::StatusOr<std::vector<ServedModel>> ModelInfo() override {
    return std::vector<ServedModel>();
  }

  std::mutex mu;
  std::condition_variable aborted_changed;
  std::string aborted;
};

TEST(InterruptibleClientTest, ASignalAbortsTheAnswerAndNothingElse) {
  Interrupts interrupts;
  BlockingClient inner;
  InterruptibleClient client(inner, interrupts);
  std::ostringstream out, err;
  Console console{.out = out, .err = err};
  ChatSession chat(client, console, {}, "", false);
  chat.HandleLine("tell me everything");
  EXPECT_FALSE(inner.aborted.empty());
  EXPECT_EQ(client.last_signal(), SIGINT);
  EXPECT_EQ(out.str(), "first\n");
  FakeInferenceClient next;
  next.answers = {{.texts = {"again"}}};
  InterruptibleClient second(next, interrupts);
  ChatSession after(second, console, {}, "", false);
  after.HandleLine("and now");
  EXPECT_TRUE(after.last_status().ok());
  EXPECT_EQ(second.last_signal(), 0);
}

TEST(LineReaderTest, ReadsLinesSignalsAndTheEnd) {
  Interrupts interrupts;
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  const std::string text = "one\ntwo";
  ASSERT_EQ(::write(fds[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  LineReader reader(fds[0], interrupts);
  EXPECT_EQ(reader.Next().line, "one");
  ::kill(::getpid(), SIGINT);
  EXPECT_EQ(reader.Next().signal, SIGINT);
  ::close(fds[1]);
  EXPECT_EQ(reader.Next().line, "two");
  const LineReader::Input end = reader.Next();
  EXPECT_FALSE(end.line.has_value());
  EXPECT_EQ(end.signal, 0);
  ::close(fds[0]);
}

}  // namespace
}  // namespace isotherm::cli
