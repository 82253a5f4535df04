#include "models/inspect/inspect.h"

#include <nlohmann/json.hpp>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/model_file.h"
#include "models/profile/activation_profile.h"
#include "tests/models/temp_folder.h"
#include "tests/models/tiny_model.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class InspectTest : public testing::Test {
 protected:
  std::string Write(const TinyModel& tiny) { return folder_.Write("model.gguf", tiny.Bytes()); }
  void ExpectDamaged(const TinyModel& tiny, const std::string& naming) {
    const absl::Status status = Verify(Write(tiny));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
  }
  TempFolder folder_;
};

TEST_F(InspectTest, TellsWhatAPersonAsks) {
  TinyModel tiny(/*is_powerinfer=*/true, DType::kQ8_0);
  tiny.keys["tokenizer.ggml.model"] = TinyModel::Text("gpt2");
  tiny.keys["tokenizer.ggml.pre"] = TinyModel::Text("smollm");
  tiny.keys["tokenizer.chat_template"] = TinyModel::Text("x");
  const std::string path = Write(tiny);
  ASSERT_EQ(WriteActivationProfiles(folder_.File("model.profile.gguf"),
                                    {{"chat", {std::vector<float>(96), std::vector<float>(96)}}}),
            absl::OkStatus());
  const auto summary = Inspect(path);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const std::string text = ToText(*summary);
  for (const char* part : {"PowerInfer file", "2 layers", "width 64", "96 neurons", "ReLU",
                           "threshold 0.25", "gpt2 / smollm, 11 tokens", "in the file", "chat"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  const auto json = nlohmann::json::parse(ToJson(*summary));
  EXPECT_EQ(json["num_layers"], 2);
  EXPECT_EQ(json["sparse"], true);
  EXPECT_EQ(json["profiles"], nlohmann::json::array({"chat"}));
  // 3 rows of 64 Q8_0 elements: 204 bytes, 256 with padding.
  EXPECT_EQ(json["ffn_bytes"], 256 * 96 * 2);
  EXPECT_EQ(json["file_bytes"], tiny.Bytes().size());
}

TEST_F(InspectTest, NeverPrintsControlBytesOfTheFile) {
  TinyModel tiny(/*is_powerinfer=*/true);
  tiny.keys["general.name"] = TinyModel::Text("evil\x1b[2J\xff");
  const auto summary = Inspect(Write(tiny));
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(ToText(*summary), Not(HasSubstr("\x1b")));
  EXPECT_THAT(ToJson(*summary), Not(HasSubstr("\x1b")));
}

TEST_F(InspectTest, VerifiesAGoodModelAndReportsEveryByte) {
  for (const bool powerinfer : {true, false}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
      const TinyModel tiny(powerinfer, dtype);
      int64_t last = 0, of = 0;
      ASSERT_EQ(Verify(Write(tiny),
                       [&](int64_t done, int64_t total) {
                         EXPECT_GE(done, last);
                         last = done;
                         of = total;
                       }),
                absl::OkStatus());
      EXPECT_EQ(last, of);
      EXPECT_GT(of, 0);
    }
  }
}

TEST_F(InspectTest, FindsTheTensorThatIsDamaged) {
  const TinyModel good(/*is_powerinfer=*/true, DType::kQ8_0);
  for (const auto& [name, tensor] : good.tensors) {
    TinyModel damaged = good;
    std::string bytes = TinyModel::Encoded(name, tensor);
    // The last block's scale, or the last float, becomes infinite.
    if (tensor.dtype == DType::kF32) {
      const uint32_t infinite = 0x7f800000u;
      std::memcpy(bytes.data() + bytes.size() - 4, &infinite, 4);
    } else {
      const uint16_t infinite = 0x7c00;
      std::memcpy(bytes.data() + bytes.size() - 34, &infinite, 2);
    }
    damaged.contents[name] = bytes;
    ExpectDamaged(damaged, name);
  }
}

TEST_F(InspectTest, FindsATokenizerThatDoesNotFitTheVocabulary) {
  TinyModel types(/*is_powerinfer=*/true);
  types.keys["tokenizer.ggml.token_type"] =
      GgufBytes().Put<uint32_t>(9).Put<uint32_t>(5).Put<uint64_t>(1).Put<int32_t>(1).bytes();
  ExpectDamaged(types, "token_type has 1 elements");
  types.keys["tokenizer.ggml.token_type"] = TinyModel::Text("x");
  ExpectDamaged(types, "token_type");
  for (const char* name : {"bos", "eos", "eot", "unknown", "padding"}) {
    TinyModel ids(/*is_powerinfer=*/true);
    const std::string key = absl::StrCat("tokenizer.ggml.", name, "_token_id");
    ids.keys[key] = TinyModel::Value<uint32_t>(4, 11);
    ExpectDamaged(ids, key);
    ids.keys[key] = TinyModel::Value<uint32_t>(4, 10);
    EXPECT_EQ(Verify(Write(ids)), absl::OkStatus());
  }
}

TEST_F(InspectTest, FindsAProfileOfAnotherModel) {
  ASSERT_EQ(WriteActivationProfiles(folder_.File("model.profile.gguf"),
                                    {{"chat", {std::vector<float>(95), std::vector<float>(95)}}}),
            absl::OkStatus());
  ExpectDamaged(TinyModel(/*is_powerinfer=*/true), "profile 'chat'");
}

}  // namespace
}  // namespace isotherm
