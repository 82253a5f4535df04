// The ids that Hugging Face tokenizers gives, for more than 2,000 texts of many scripts.

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/tokenizer/tokenizer.h"
#include "tests/models/tokenizer/vectors.h"

namespace isotherm {
namespace {

using testing_vectors::ReadIds;
using testing_vectors::ReadSpec;
using testing_vectors::ReadTexts;

void ExpectSameIds(const Tokenizer& tokenizer, const std::string& name, size_t width) {
  const std::vector<std::string> texts = ReadTexts();
  const std::vector<std::vector<int32_t>> wanted = ReadIds(name, width);
  ASSERT_GE(texts.size(), 2000);
  ASSERT_EQ(texts.size(), wanted.size());
  int differing = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = tokenizer.Encode(texts[i], /*add_special=*/false, /*parse_special=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    if (*ids == wanted[i]) continue;
    if (++differing <= 5) {
      EXPECT_THAT(*ids, testing::ElementsAreArray(wanted[i])) << i << ": " << texts[i];
    }
  }
  EXPECT_EQ(differing, 0) << "of " << texts.size() << " texts";
}

class ByteBpeVectorsTest : public testing::TestWithParam<const char*> {};

TEST_P(ByteBpeVectorsTest, EncodesEveryTextAsTheReferenceDoes) {
  const auto tokenizer = Tokenizer::Create([&] {
    TokenizerSpec spec = ReadSpec("bpe.json", "gpt2", GetParam());
    spec.add_bos = false;
    return spec;
  }());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectSameIds(**tokenizer, GetParam(), 2);
}

TEST_P(ByteBpeVectorsTest, DecodesWhatItEncoded) {
  TokenizerSpec spec = ReadSpec("bpe.json", "gpt2", GetParam());
  spec.add_bos = false;
  const auto tokenizer = Tokenizer::Create(std::move(spec));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const std::string& text : ReadTexts()) {
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, true, false).value()), text);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPreTokenizer, ByteBpeVectorsTest,
                         testing::Values("gpt-2", "smollm", "falcon", "llama-bpe"));

TEST(SpmVectorsTest, EncodesEveryTextAsTheReferenceDoes) {
  const auto tokenizer = Tokenizer::Create(ReadSpec("spm.json", "llama", ""));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectSameIds(**tokenizer, "spm", 2);
}

TEST(SpmVectorsTest, DecodesWhatItEncoded) {
  const auto tokenizer = Tokenizer::Create(ReadSpec("spm.json", "llama", ""));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const std::string& text : ReadTexts()) {
    if (text.find("\xE2\x96\x81") != std::string::npos) continue;  // U+2581 reads as a space
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, true, false).value()), text);
  }
}

}  // namespace
}  // namespace isotherm
