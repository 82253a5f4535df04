#include "models/tokenizer/gguf_spec.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/gguf/gguf_writer.h"

namespace isotherm {
namespace {

using testing::ElementsAre;

absl::StatusOr<TokenizerSpec> ReadBack(void (*add)(GgufWriter&)) {
  const std::string path = testing::TempDir() + "/gguf_spec_test.gguf";
  auto writer = GgufWriter::Create(path, /*powerinfer=*/false).value();
  writer->AddString("general.architecture", "llama");
  add(*writer);
  const std::byte weights[32] = {};
  const int64_t shape[] = {8};
  EXPECT_TRUE(writer->DeclareTensor("w", DType::kF32, shape).ok());
  EXPECT_TRUE(writer->Write(weights).ok());
  EXPECT_TRUE(writer->Finish().ok());
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return ReadTokenizerSpec(**file);
}

void AddTokens(GgufWriter& writer) {
  const std::string tokens[] = {"a", "b", "ab"};
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddStrings("tokenizer.ggml.tokens", tokens);
}

TEST(GgufSpecTest, ReadsEveryKey) {
  const auto spec = ReadBack([](GgufWriter& writer) {
    AddTokens(writer);
    const std::string merges[] = {"a b"};
    const float scores[] = {0, -1, -2};
    const int32_t types[] = {1, 1, 3};
    writer.AddString("tokenizer.ggml.pre", "smollm");
    writer.AddStrings("tokenizer.ggml.merges", merges);
    writer.AddFloats("tokenizer.ggml.scores", scores);
    writer.AddInts("tokenizer.ggml.token_type", types);
    writer.AddUint32("tokenizer.ggml.bos_token_id", 1);
    writer.AddUint32("tokenizer.ggml.eos_token_id", 2);
    writer.AddUint32("tokenizer.ggml.eot_token_id", 0);
    writer.AddUint32("tokenizer.ggml.unknown_token_id", 0);
    writer.AddUint32("tokenizer.ggml.padding_token_id", 2);
    writer.AddBool("tokenizer.ggml.add_bos_token", false);
    writer.AddBool("tokenizer.ggml.add_eos_token", true);
    writer.AddBool("tokenizer.ggml.add_space_prefix", false);
  });
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->architecture, "llama");
  EXPECT_EQ(spec->model, "gpt2");
  EXPECT_EQ(spec->pre, "smollm");
  EXPECT_THAT(spec->tokens, ElementsAre("a", "b", "ab"));
  EXPECT_THAT(spec->merges, ElementsAre("a b"));
  EXPECT_THAT(spec->scores, ElementsAre(0, -1, -2));
  EXPECT_THAT(spec->token_types, ElementsAre(1, 1, 3));
  EXPECT_EQ(spec->bos, 1);
  EXPECT_EQ(spec->eos, 2);
  EXPECT_EQ(spec->eot, 0);
  EXPECT_EQ(spec->unk, 0);
  EXPECT_EQ(spec->pad, 2);
  EXPECT_EQ(spec->add_bos, false);
  EXPECT_EQ(spec->add_eos, true);
  EXPECT_EQ(spec->add_space_prefix, false);
}

TEST(GgufSpecTest, LeavesOutWhatTheFileDoesNotSay) {
  const auto spec = ReadBack(AddTokens);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->pre, "");
  EXPECT_FALSE(spec->bos.has_value());
  EXPECT_FALSE(spec->add_bos.has_value());
  EXPECT_TRUE(spec->merges.empty());
}

TEST(GgufSpecTest, NamesAMissingOrWrongKey) {
  const auto no_tokens =
      ReadBack([](GgufWriter& writer) { writer.AddString("tokenizer.ggml.model", "gpt2"); });
  EXPECT_THAT(no_tokens.status().ToString(), testing::HasSubstr("tokenizer.ggml.tokens"));
  const auto huge_id = ReadBack([](GgufWriter& writer) {
    AddTokens(writer);
    writer.AddUint32("tokenizer.ggml.bos_token_id", 0xFFFFFFFF);
  });
  EXPECT_THAT(huge_id.status().ToString(), testing::HasSubstr("bos_token_id"));
  const auto wrong_type = ReadBack([](GgufWriter& writer) {
    AddTokens(writer);
    writer.AddString("tokenizer.ggml.pre", "smollm");
    writer.AddUint32("tokenizer.ggml.add_bos_token", 1);
  });
  EXPECT_THAT(wrong_type.status().ToString(), testing::HasSubstr("add_bos_token"));
}

}  // namespace
}  // namespace isotherm
