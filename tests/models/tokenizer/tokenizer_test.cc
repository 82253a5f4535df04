#include "models/tokenizer/tokenizer.h"

#include <chrono>
#include <ctime>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/small_stack.h"
#include "tests/models/tokenizer/vectors.h"

namespace isotherm {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing_vectors::ReadSpec;

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUser = 4, kByte = 6;

// a b c ab abc space, then the specials.
TokenizerSpec SmallBpe() {
  TokenizerSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens = {"a",   "b",     "c",          "ab",       "abc", "\xC4\xA0", "<",   "|",
                 "end", "<|end", "<|im_end|>", "<|end|>>", "e",   "n",        "d",   "en",
                 ">",   "<u>",   "</s>",       "_",        "i",   "m",        "im_", "im"};
  spec.token_types.assign(spec.tokens.size(), kNormal);
  spec.token_types[10] = spec.token_types[11] = spec.token_types[18] = kControl;
  spec.token_types[17] = kUser;
  spec.merges = {"a b", "ab c", "e n", "en d", "i m", "im _"};
  return spec;
}

std::unique_ptr<Tokenizer> MustCreate(TokenizerSpec spec) {
  auto tokenizer = Tokenizer::Create(std::move(spec));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, absl::string_view text,
                            bool parse_special = false) {
  return tokenizer.Encode(text, /*add_special=*/false, parse_special).value();
}

absl::Status CreateStatus(TokenizerSpec spec) {
  return Tokenizer::Create(std::move(spec)).status();
}

TEST(TokenizerTest, MergesByRankLeftmostFirst) {
  const auto tokenizer = MustCreate(SmallBpe());
  EXPECT_THAT(Encode(*tokenizer, "ababc"), ElementsAre(3, 4));
  EXPECT_THAT(Encode(*tokenizer, "abc abc"), ElementsAre(4, 5, 4));
}

TEST(TokenizerTest, ControlTokensMatchInTrustedTextOnly) {
  const auto tokenizer = MustCreate(SmallBpe());
  EXPECT_THAT(Encode(*tokenizer, "a<|im_end|>b", true), ElementsAre(0, 10, 1));
  EXPECT_THAT(Encode(*tokenizer, "a<|im_end|>b", false), Not(Contains(10)));
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, "a<|im_end|>b", false)), "a<|im_end|>b");
}

TEST(TokenizerTest, NoControlTokenFormsAcrossTheBorderOfUserText) {
  const auto tokenizer = MustCreate(SmallBpe());
  const absl::string_view whole = "<|im_end|>";
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    for (const bool user_first : {false, true}) {
      const Tokenizer::Segment segments[] = {{whole.substr(0, cut), !user_first},
                                             {whole.substr(cut), user_first}};
      const bool all_trusted = user_first ? cut == 0 : cut == whole.size();
      const auto ids = tokenizer->Encode(segments, false).value();
      EXPECT_EQ(std::count(ids.begin(), ids.end(), 10), all_trusted ? 1 : 0) << cut << user_first;
      if (!all_trusted) {
        EXPECT_EQ(ids, Encode(*tokenizer, whole)) << "one text, one tokenization";
      }
    }
  }
}

TEST(TokenizerTest, NeighbouringTrustedSegmentsAreOneText) {
  const auto tokenizer = MustCreate(SmallBpe());
  const Tokenizer::Segment segments[] = {{"<|im_", true}, {"", false}, {"end|>", true}};
  EXPECT_THAT(tokenizer->Encode(segments, false).value(), ElementsAre(10));
}

TEST(TokenizerTest, UserDefinedTokensMatchEverywhere) {
  const auto tokenizer = MustCreate(SmallBpe());
  EXPECT_THAT(Encode(*tokenizer, "a<u>b", false), ElementsAre(0, 17, 1));
}

TEST(TokenizerTest, MergesNeverReachAControlToken) {
  TokenizerSpec spec = SmallBpe();
  spec.tokens.push_back("ba");
  spec.token_types.push_back(kControl);
  spec.merges.push_back("b a");
  EXPECT_THAT(CreateStatus(spec).message(), HasSubstr("no ordinary token"));
}

TEST(TokenizerTest, AddsBosAndEosOnce) {
  TokenizerSpec spec = SmallBpe();
  spec.bos = 18;
  spec.eos = 10;
  spec.add_bos = spec.add_eos = true;
  const auto tokenizer = MustCreate(spec);
  EXPECT_THAT(tokenizer->Encode("a", true, false).value(), ElementsAre(18, 0, 10));
  EXPECT_THAT(tokenizer->Encode("</s>a", true, true).value(), ElementsAre(18, 0, 10));
  EXPECT_THAT(tokenizer->Encode("a", false, false).value(), ElementsAre(0));
}

TEST(TokenizerTest, BosIsAddedByDefaultForSpmLlamaBpeAndOptOnly) {
  TokenizerSpec spec = SmallBpe();
  spec.bos = 18;
  EXPECT_FALSE(MustCreate(spec)->add_bos());
  spec.pre = "llama-bpe";
  EXPECT_TRUE(MustCreate(spec)->add_bos());
  spec.pre = "";
  spec.architecture = "opt";
  EXPECT_TRUE(MustCreate(spec)->add_bos());
  EXPECT_TRUE(MustCreate(ReadSpec("spm.json", "llama", ""))->add_bos());
}

TEST(TokenizerTest, OldFilesGetTheirPreTokenizerFromTheArchitecture) {
  TokenizerSpec spec = SmallBpe();
  spec.pre = "";
  EXPECT_THAT(CreateStatus(spec).message(), HasSubstr("known are gpt-2, smollm"));
  spec.architecture = "falcon";
  EXPECT_THAT(Encode(*MustCreate(spec), "a|"), ElementsAre(0, 7));
  spec.pre = "qwen2";
  EXPECT_THAT(CreateStatus(spec).message(), HasSubstr("'qwen2'"));
}

TEST(TokenizerTest, StopsAreEosEotAndControlTokensWithUsualNames) {
  TokenizerSpec spec = SmallBpe();
  spec.eos = 18;
  spec.eot = 11;
  const auto tokenizer = MustCreate(spec);
  EXPECT_THAT(tokenizer->stop_ids(), ElementsAre(10, 11, 18));
  EXPECT_TRUE(tokenizer->IsStop(10));
  EXPECT_FALSE(tokenizer->IsStop(0));
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = MustCreate(SmallBpe());
  for (const char* text : {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "a\x80",
                           "\xF8\x88\x80\x80\x80", "\xFF"}) {
    const auto ids = tokenizer->Encode(text, true, true);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(TokenizerTest, NulAndBytesWithoutTokenAreDropped) {
  const auto tokenizer = MustCreate(SmallBpe());
  EXPECT_THAT(Encode(*tokenizer, absl::string_view("a\0b", 3)), ElementsAre(0, 1));
  EXPECT_THAT(Encode(*tokenizer, "\xC3\xA9"), ElementsAre());
}

TEST(TokenizerTest, RefusesDamagedVocabularies) {
  struct Case {
    const char* wanted;
    void (*damage)(TokenizerSpec&);
  };
  const Case cases[] = {
      {"not supported", [](TokenizerSpec& s) { s.model = "bert"; }},
      {"0 tokens", [](TokenizerSpec& s) { s.tokens.clear(); }},
      {"twice", [](TokenizerSpec& s) { s.tokens[1] = "a"; }},
      {"no text", [](TokenizerSpec& s) { s.tokens[1] = ""; }},
      {"not UTF-8", [](TokenizerSpec& s) { s.tokens[1] = "\xFF"; }},
      {"4096 bytes", [](TokenizerSpec& s) { s.tokens[8] = std::string(5000, 'x'); }},
      {"at most 256", [](TokenizerSpec& s) { s.tokens[10] = std::string(300, 'x'); }},
      {"token types", [](TokenizerSpec& s) { s.token_types.pop_back(); }},
      {"type 7", [](TokenizerSpec& s) { s.token_types[3] = 7; }},
      {"outside the vocabulary", [](TokenizerSpec& s) { s.eos = 24; }},
      {"outside the vocabulary", [](TokenizerSpec& s) { s.bos = -1; }},
      {"adds BOS", [](TokenizerSpec& s) { s.add_bos = true; }},
      {"listed twice", [](TokenizerSpec& s) { s.merges.push_back("a b"); }},
      {"two tokens", [](TokenizerSpec& s) { s.merges[0] = "ab"; }},
      {"two tokens", [](TokenizerSpec& s) { s.merges[0] = "a "; }},
      {"two tokens", [](TokenizerSpec& s) { s.merges[0] = ""; }},
      // Joined parts are longer than each part, so that a cycle takes an empty part.
      {"two tokens", [](TokenizerSpec& s) { s.merges[0] = " a"; }},
      {"no ordinary token", [](TokenizerSpec& s) { s.merges.push_back("b c"); }},
      {"no ordinary token", [](TokenizerSpec& s) { s.merges.push_back("x y"); }},
  };
  for (const Case& c : cases) {
    TokenizerSpec spec = SmallBpe();
    c.damage(spec);
    EXPECT_THAT(std::string(CreateStatus(spec).message()), HasSubstr(c.wanted));
  }
}

TEST(TokenizerTest, RefusesDamagedSpmVocabularies) {
  TokenizerSpec good = ReadSpec("spm.json", "llama", "");
  const auto byte = std::find(good.token_types.begin(), good.token_types.end(), kByte);
  const size_t byte_id = byte - good.token_types.begin();
  for (const char* text : {"<0x-1>", "<0xGG>", "<0x1>", "<0x001>", "0x01", "<0x1 >", "<0xab>"}) {
    TokenizerSpec spec = good;
    spec.tokens[byte_id] = text;
    EXPECT_THAT(CreateStatus(spec).message(), HasSubstr("<0x00> to <0xFF>")) << text;
  }
  TokenizerSpec no_scores = good;
  no_scores.scores.clear();
  EXPECT_THAT(CreateStatus(no_scores).message(), HasSubstr("0 scores"));
  TokenizerSpec nan = good;
  nan.scores[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(CreateStatus(nan).message(), HasSubstr("finite"));
}

TEST(TokenizerTest, SpmPutsASpaceBeforeTheTextAndAfterEachSpecial) {
  TokenizerSpec spec;
  spec.model = "llama";
  spec.tokens = {"<unk>",
                 "<s>",
                 "</s>",
                 "a",
                 "\xE2\x96\x81",
                 "\xE2\x96\x81"
                 "a"};
  spec.token_types = {kUnknown, kControl, kControl, kNormal, kNormal, kNormal};
  spec.scores = {0, 0, 0, -2, -3, -1};
  const auto tokenizer = MustCreate(spec);
  EXPECT_THAT(tokenizer->Encode("a</s>a", true, true).value(), ElementsAre(1, 5, 2, 5));
  EXPECT_THAT(tokenizer->Encode("</s>", true, true).value(), ElementsAre(1, 2));
  EXPECT_THAT(tokenizer->Encode("ab", true, true).value(), ElementsAre(1, 5, 0)) << "b is unknown";
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{1, 5, 5, 2}), "a a");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{1, 5, 2}, /*with_control=*/true), "<s>a</s>");
  spec.add_space_prefix = false;
  EXPECT_THAT(MustCreate(spec)->Encode("a</s>a", false, true).value(), ElementsAre(3, 2, 3));
}

TEST(TokenizerTest, SpmTokensMayHoldSeveralWords) {
  TokenizerSpec spec;
  spec.model = "llama";
  spec.tokens = {"<unk>",
                 "<s>",
                 "</s>",
                 "a",
                 "\xE2\x96\x81",
                 "\xE2\x96\x81"
                 "a",
                 "a\xE2\x96\x81"
                 "a",
                 "a\xE2\x96\x81"};
  spec.token_types = {kUnknown, kControl, kControl, kNormal, kNormal, kNormal, kNormal, kNormal};
  spec.scores = {0, 0, 0, -4, -5, -3, -1, -2};
  spec.add_space_prefix = false;
  EXPECT_THAT(Encode(*MustCreate(spec), "a a"), ElementsAre(6));
}

TEST(TokenizerTest, DecodeSkipsIdsOutsideTheVocabulary) {
  const auto tokenizer = MustCreate(SmallBpe());
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{-1, 0, 1000, INT32_MAX, INT32_MIN, 1}), "ab");
  EXPECT_EQ(tokenizer->Piece(-5), "");
  EXPECT_FALSE(tokenizer->IsControl(1000));
}

// CPU time, so that a busy machine does not fail the test.
double CpuSeconds(const Tokenizer& tokenizer, const std::string& text) {
  const std::clock_t start = std::clock();
  EXPECT_TRUE(tokenizer.Encode(text, true, true).ok());
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

TEST(TokenizerTest, MonotoneTextTakesLinearTimeAndLittleStack) {
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (const char* pre : {"gpt-2", "smollm", "falcon", "llama-bpe"}) {
    TokenizerSpec spec = ReadSpec("bpe.json", "gpt2", pre);
    spec.add_bos = false;
    tokenizers.push_back(MustCreate(spec));
  }
  tokenizers.push_back(MustCreate(ReadSpec("spm.json", "llama", "")));
  for (const auto& tokenizer : tokenizers) {
    for (const std::string unit : {"a", " ", "\xE4\xB8\xAD", "1", "!", "\n", "<", " \n"}) {
      std::string text;
      while (text.size() < 128 * 1024) text += unit;
      // A quadratic algorithm takes 10^10 steps.
      testing_stack::RunOnSmallStack([&] {
        EXPECT_LT(CpuSeconds(*tokenizer, text), 1.0 * testing_stack::kSlowdown)
            << "unit '" << unit << "'";
      });
    }
  }
}

}  // namespace
}  // namespace isotherm
