#include "models/tokenizer/stream_decoder.h"

#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/tokenizer/tokenizer.h"
#include "models/tokenizer/utf8.h"
#include "tests/models/tokenizer/vectors.h"

namespace isotherm {
namespace {

std::unique_ptr<Tokenizer> BpeTokenizer() {
  TokenizerSpec spec = testing_vectors::ReadSpec("bpe.json", "gpt2", "gpt-2");
  return Tokenizer::Create(std::move(spec)).value();
}

TEST(StreamDecoderTest, StreamsWholeCharactersThatAddUpToTheText) {
  const auto tokenizer = BpeTokenizer();
  for (const std::string& text : testing_vectors::ReadTexts()) {
    const auto ids = tokenizer->Encode(text, false, false).value();
    StreamDecoder decoder(*tokenizer);
    std::string all;
    for (const int32_t id : ids) {
      const std::string part = decoder.Append(id);
      EXPECT_EQ(FindInvalidUtf8(part), absl::string_view::npos) << text;
      all += part;
    }
    all += decoder.Finish();
    EXPECT_EQ(all, tokenizer->Decode(ids));
  }
}

TEST(StreamDecoderTest, AgreesWithDecodeOnArbitraryIds) {
  const auto tokenizer = BpeTokenizer();
  std::mt19937 random(7);
  // The first ids are single bytes: most sequences of them are ill-formed.
  std::uniform_int_distribution<int32_t> any(-2, 400);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(random() % 12);
    for (int32_t& id : ids) id = any(random);
    StreamDecoder decoder(*tokenizer);
    std::string all;
    for (const int32_t id : ids) all += decoder.Append(id);
    all += decoder.Finish();
    EXPECT_EQ(all, tokenizer->Decode(ids)) << testing::PrintToString(ids);
    EXPECT_EQ(FindInvalidUtf8(all), absl::string_view::npos);
  }
}

TEST(StreamDecoderTest, ACharacterCutByTheEndBecomesOneReplacement) {
  const auto tokenizer = BpeTokenizer();
  TokenizerSpec spec = testing_vectors::ReadSpec("bpe.json", "gpt2", "gpt-2");
  const auto letter = std::find(spec.tokens.begin(), spec.tokens.end(), "\xC3\xB0");  // byte F0
  ASSERT_NE(letter, spec.tokens.end());
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Append(static_cast<int32_t>(letter - spec.tokens.begin())), "");
  EXPECT_EQ(decoder.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.Finish(), "");
}

}  // namespace
}  // namespace isotherm
