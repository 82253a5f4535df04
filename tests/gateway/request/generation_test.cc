#include "gateway/request/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fake_text_model.h"

namespace isotherm {
namespace {

class GenerationTest : public testing::Test {
 protected:
  void Feed(Generation& generation, const std::string& text) {
    for (const char c : text) {
      if (generation.OnToken(0, static_cast<unsigned char>(c), std::nullopt, false) ==
          TokenVerdict::kStopText) {
        generation.OnChoiceEnd(0, FinishReason::kStop);
        return;
      }
    }
  }
  std::string Text() {
    std::string out;
    while (auto event = queue_.Pop()) {
      if (const auto* chunk = std::get_if<ChunkEvent>(&*event)) {
        out += chunk->text;
        ids_.insert(ids_.end(), chunk->token_ids.begin(), chunk->token_ids.end());
      }
      if (const auto* end = std::get_if<ChoiceEndEvent>(&*event)) matched_ = end->matched_stop;
    }
    return out;
  }

  FakeClock clock_;
  FakeTextModel model_;
  int ready_ = 0;
  OutputQueue queue_{clock_, [this] { ++ready_; }};
  std::vector<TokenId> ids_;
  std::string matched_;
};

TEST_F(GenerationTest, StopStringEndsTheChoiceAndIsNotSent) {
  Generation generation({.stops = {"END"}, .return_token_ids = true}, model_, queue_, [] {});
  Feed(generation, "abcEND");
  EXPECT_EQ(Text(), "abc");
  EXPECT_EQ(matched_, "END");
  EXPECT_THAT(ids_, testing::ElementsAre('a', 'b', 'c', 'E', 'N', 'D'));
}

TEST_F(GenerationTest, StopStringIsSentIfAskedFor) {
  Generation generation({.stops = {"END"}, .include_stop_in_output = true}, model_, queue_, [] {});
  Feed(generation, "abcEND");
  EXPECT_EQ(Text(), "abcEND");
}

TEST_F(GenerationTest, StopStringsWaitForMinTokens) {
  Generation generation({.min_tokens = 4, .stops = {"b"}}, model_, queue_, [] {});
  Feed(generation, "abababab");
  EXPECT_EQ(Text(), "ababa");
}

TEST_F(GenerationTest, EchoComesFirst) {
  Generation generation({.echo = "prompt "}, model_, queue_, [] {});
  Feed(generation, "abc");
  EXPECT_EQ(Text(), "prompt abc");
}

TEST_F(GenerationTest, HeldTextIsSentAtTheEnd) {
  Generation generation({.stops = {"END"}}, model_, queue_, [] {});
  Feed(generation, "abcEN");
  EXPECT_EQ(Text(), "abc");
  generation.OnChoiceEnd(0, FinishReason::kLength);
  EXPECT_EQ(Text(), "EN");
}

TEST_F(GenerationTest, SlowReaderGetsLargerChunksNotMore) {
  Generation generation({}, model_, queue_, [] {});
  generation.OnAccepted(3, 0);
  const Clock::TimePoint pushed = clock_.Now();
  clock_.Advance(std::chrono::seconds(1));
  Feed(generation, std::string(1000, 'x'));
  EXPECT_EQ(generation.WaitingForReaderSince(), pushed);
  queue_.Pop();
  EXPECT_EQ(std::get<ChunkEvent>(*queue_.Pop()).text.size(), 1000u);
  EXPECT_FALSE(queue_.Pop().has_value());
  EXPECT_FALSE(generation.WaitingForReaderSince().has_value());
}

TEST_F(GenerationTest, FailureEndsWithoutComplete) {
  bool finished = false;
  Generation generation({}, model_, queue_, [&] { finished = true; });
  generation.OnAccepted(3, 0);
  generation.OnFinish(absl::AbortedError("x"), {});
  EXPECT_TRUE(finished);
  EXPECT_FALSE(queue_.FinalStatus().has_value());  // the event before it was not read yet
  EXPECT_TRUE(std::holds_alternative<AcceptedEvent>(*queue_.Pop()));
  EXPECT_EQ(queue_.FinalStatus(), absl::AbortedError("x"));
}

}  // namespace
}  // namespace isotherm
