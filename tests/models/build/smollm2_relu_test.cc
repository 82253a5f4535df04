#include "models/build/smollm2_relu.h"

#include <cstring>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/build/sha256.h"
#include "models/model_file.h"
#include "models/profile/activation_profile.h"
#include "tests/models/temp_folder.h"
#include "tests/models/tiny_model.h"

namespace isotherm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kRank = 32;
constexpr const char* kMatrices[] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                     "ffn_gate", "ffn_up", "ffn_down"};

TinyModel Base() {
  TinyModel base(/*is_powerinfer=*/false, DType::kQ4_1);
  base.tensors["token_embd.weight"].dtype = DType::kQ8_0;
  base.keys["tokenizer.ggml.model"] = TinyModel::Text("gpt2");
  base.keys["tokenizer.ggml.add_bos_token"] = TinyModel::Value<uint8_t>(7, 0);
  base.keys["tokenizer.ggml.bos_token_id"] = TinyModel::Value<uint32_t>(4, 1);
  base.keys["tokenizer.chat_template"] = TinyModel::Text("{{ messages }}");
  GgufBytes tokens, types, scores;
  tokens.Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(TinyModel::kVocab);
  types.Put<uint32_t>(9).Put<uint32_t>(5).Put<uint64_t>(TinyModel::kVocab);
  scores.Put<uint32_t>(9).Put<uint32_t>(6).Put<uint64_t>(TinyModel::kVocab);
  for (int i = 0; i < TinyModel::kVocab; ++i) {
    tokens.Text(absl::StrCat("token", i));
    types.Put<int32_t>(1);
    scores.Put<float>(-1.5f);
  }
  base.keys["tokenizer.ggml.tokens"] = tokens.bytes();
  base.keys["tokenizer.ggml.token_type"] = types.bytes();
  base.keys["tokenizer.ggml.scores"] = scores.bytes();
  return base;
}

TinyModel Adapter() {
  TinyModel adapter(/*is_powerinfer=*/false);
  const TinyModel base = Base();
  adapter.keys = {{"general.architecture", TinyModel::Text("llama")},
                  {"general.type", TinyModel::Text("adapter")},
                  {"adapter.type", TinyModel::Text("lora")},
                  {"adapter.lora.alpha", TinyModel::Value<float>(6, kRank)},
                  {"isotherm.adapter.activation", TinyModel::Text("relu")}};
  adapter.tensors.clear();
  adapter.tensors["output_norm.weight"] = {{TinyModel::kDim}};
  for (int64_t layer = 0; layer < TinyModel::kLayers; ++layer) {
    const auto name = [layer](const std::string& stem) {
      return ModelFile::LayerTensor(layer, stem);
    };
    for (const char* stem : kMatrices) {
      const std::vector<int64_t>& shape = base.tensors.at(name(stem)).shape;
      adapter.tensors[name(stem) + ".lora_a"] = {{shape[0], kRank}, DType::kQ8_0};
      adapter.tensors[name(stem) + ".lora_b"] = {{kRank, shape[1]}, DType::kQ8_0};
    }
    adapter.tensors[name("attn_norm")] = {{TinyModel::kDim}};
    adapter.tensors[name("ffn_norm")] = {{TinyModel::kDim}};
    adapter.tensors[name("fc1")] = {{TinyModel::kDim, 64}, DType::kQ8_0};
    adapter.tensors[name("fc2")] = {{64, TinyModel::kFfn}, DType::kQ8_0};
    for (const char* profile : {"chat", "text"}) {
      const std::string tensor = absl::StrCat("blk.", layer, ".activation_frequency.", profile);
      adapter.tensors[tensor] = {{TinyModel::kFfn}};
      std::string bytes;
      for (int64_t n = 0; n < TinyModel::kFfn; ++n) {
        const float share = static_cast<float>(n + layer) / 128;
        bytes.append(reinterpret_cast<const char*>(&share), 4);
      }
      adapter.contents[tensor] = bytes;
    }
  }
  return adapter;
}

// A tensor's values as they read back from their stored form, [rows][columns].
std::vector<std::vector<float>> Decoded(const TinyModel& model, const std::string& name) {
  const TinyModel::Tensor& tensor = model.tensors.at(name);
  const std::string bytes = TinyModel::Encoded(name, tensor);
  const int64_t row_bytes = RowBytes(tensor.dtype, tensor.shape[0]).value();
  std::vector<std::vector<float>> out;
  for (int64_t r = 0; r < tensor.shape[1]; ++r) {
    out.emplace_back(static_cast<size_t>(tensor.shape[0]));
    EXPECT_TRUE(DecodeRow(tensor.dtype,
                          reinterpret_cast<const std::byte*>(bytes.data()) + r * row_bytes,
                          out.back())
                    .ok());
  }
  return out;
}

class BuildTest : public testing::Test {
 protected:
  BuildOptions Options(const TinyModel& base, const TinyModel& adapter) {
    BuildOptions options{.base_path = folder_.Write("base", base.Bytes()),
                         .adapter_path = folder_.Write("adapter", adapter.Bytes()),
                         .output_path = folder_.File("out.gguf")};
    options.base_sha256 = Sha256OfFile(options.base_path).value();
    return options;
  }
  void ExpectRefused(const BuildOptions& options, ExitCode code, const std::string& naming) {
    const absl::Status status = BuildSmollm2Relu(options);
    EXPECT_EQ(ExitCodeOf(status), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
    EXPECT_THAT(folder_.Names(), ElementsAre("adapter", "base"));  // nothing is left behind
  }
  TempFolder folder_;
};

TEST_F(BuildTest, MergesTheUpdateIntoEveryMatrix) {
  const TinyModel base = Base(), adapter = Adapter();
  BuildOptions options = Options(base, adapter);
  options.format = DType::kF16;
  ASSERT_EQ(BuildSmollm2Relu(options), absl::OkStatus());
  const auto model = ModelFile::Open(options.output_path);
  ASSERT_TRUE(model.ok()) << model.status();
  for (const char* stem : kMatrices) {
    const std::string name = ModelFile::LayerTensor(1, stem);
    const auto w = Decoded(base, name);
    const auto a = Decoded(adapter, name + ".lora_a"), b = Decoded(adapter, name + ".lora_b");
    const bool down = absl::string_view(stem) == "ffn_down";
    const auto merged = (*model)->ReadMatrix(down ? ModelFile::LayerTensor(1, "ffn_down_t") : name);
    ASSERT_TRUE(merged.ok()) << merged.status();
    EXPECT_EQ(merged->rows, static_cast<int64_t>(down ? w[0].size() : w.size()));
    std::vector<float> row(static_cast<size_t>(merged->columns));
    for (int64_t r = 0; r < merged->rows; ++r) {
      ASSERT_TRUE(DecodeRow(merged->dtype, merged->data() + r * merged->row_bytes, row).ok());
      for (size_t c = 0; c < row.size(); ++c) {
        const size_t out = down ? c : static_cast<size_t>(r);
        const size_t in = down ? static_cast<size_t>(r) : c;
        double wanted = w[out][in];
        for (size_t k = 0; k < kRank; ++k) wanted += double{b[out][k]} * a[k][in];
        EXPECT_NEAR(row[c], wanted, 0x1p-11 * std::abs(wanted) + 1e-5) << name;
      }
    }
  }
}

TEST_F(BuildTest, MakesASparseModelWithTheBasesTokenizer) {
  const TinyModel base = Base(), adapter = Adapter();
  const BuildOptions options = Options(base, adapter);
  ASSERT_EQ(BuildSmollm2Relu(options), absl::OkStatus());
  const auto model = ModelFile::Open(options.output_path);
  ASSERT_TRUE(model.ok()) << model.status();
  const GgufFile& file = (*model)->gguf();
  EXPECT_TRUE(file.is_powerinfer());
  EXPECT_TRUE((*model)->config().sparse);
  EXPECT_EQ((*model)->config().activation, Activation::kRelu);
  EXPECT_EQ((*model)->bundle_layout().dtype, DType::kQ8_0);
  EXPECT_EQ((*model)->repacked(), "");
  EXPECT_EQ(file.GetString("tokenizer.chat_template").value(), "{{ messages }}");
  EXPECT_EQ(file.GetStrings("tokenizer.ggml.tokens").value().size(), 11u);
  EXPECT_EQ(file.GetInts("tokenizer.ggml.token_type").value().size(), 11u);
  EXPECT_EQ(file.GetFloats("tokenizer.ggml.scores").value().front(), -1.5f);
  EXPECT_EQ(file.GetInt("tokenizer.ggml.bos_token_id").value(), 1);
  EXPECT_FALSE(file.GetBool("tokenizer.ggml.add_bos_token").value());
  // Copied byte for byte: embeddings from the base, norms and predictors from the adapter.
  const auto expect_copied = [&file](const TinyModel& from, const std::string& name) {
    const GgufTensor* tensor = file.FindTensor(name);
    ASSERT_NE(tensor, nullptr) << name;
    std::string bytes(static_cast<size_t>(tensor->bytes), '\0');
    ASSERT_TRUE(file.Read(*tensor, 0, std::as_writable_bytes(std::span(bytes))).ok());
    EXPECT_EQ(bytes, TinyModel::Encoded(name, from.tensors.at(name))) << name;
  };
  expect_copied(base, "token_embd.weight");
  expect_copied(adapter, "output_norm.weight");
  for (const char* stem : {"attn_norm", "ffn_norm", "fc1", "fc2"}) {
    expect_copied(adapter, ModelFile::LayerTensor(1, stem));
  }
}

TEST_F(BuildTest, WritesTheProfilesBesideTheModel) {
  const BuildOptions options = Options(Base(), Adapter());
  ASSERT_EQ(BuildSmollm2Relu(options), absl::OkStatus());
  EXPECT_THAT(folder_.Names(), ElementsAre("adapter", "base", "out.gguf", "out.profile.gguf"));
  const auto profiles = ReadActivationProfiles(folder_.File("out.profile.gguf"));
  ASSERT_TRUE(profiles.ok()) << profiles.status();
  ASSERT_EQ(profiles->size(), 2u);
  EXPECT_EQ((*profiles)[0].name, "chat");
  EXPECT_EQ((*profiles)[1].name, "text");
  ASSERT_EQ((*profiles)[1].frequency.size(), 2u);
  EXPECT_EQ((*profiles)[1].frequency[1][5], 6.0f / 128);
}

TEST_F(BuildTest, GivesTheSameBytesForAnyNumberOfThreads) {
  for (const DType format : {DType::kQ8_0, DType::kQ4_0, DType::kF16}) {
    BuildOptions options = Options(Base(), Adapter());
    options.format = format;
    std::string model, profile;
    for (const int threads : {1, 2, 7}) {
      options.num_threads = threads;
      ASSERT_EQ(BuildSmollm2Relu(options), absl::OkStatus());
      if (!model.empty()) {
        EXPECT_EQ(folder_.Content("out.gguf"), model) << threads;
        EXPECT_EQ(folder_.Content("out.profile.gguf"), profile) << threads;
      }
      model = folder_.Content("out.gguf");
      profile = folder_.Content("out.profile.gguf");
    }
  }
}

TEST_F(BuildTest, ReportsProgressUpToTheEndOfEachStage) {
  BuildOptions options = Options(Base(), Adapter());
  std::map<std::string, std::pair<int64_t, int64_t>> last;
  options.progress = [&](absl::string_view stage, int64_t done, int64_t total) {
    auto& [before, of] = last[std::string(stage)];
    EXPECT_GE(done, before);
    EXPECT_LE(done, total);
    before = done;
    of = total;
  };
  ASSERT_EQ(BuildSmollm2Relu(options), absl::OkStatus());
  EXPECT_EQ(last.size(), 2u);
  for (const auto& [stage, progress] : last) EXPECT_EQ(progress.first, progress.second) << stage;
}

TEST_F(BuildTest, RefusesAnotherBase) {
  BuildOptions options = Options(Base(), Adapter());
  options.base_sha256 = kSmollm2BaseSha256;
  ExpectRefused(options, ExitCode::kBadData, kSmollm2BaseSha256);
  options.base_path = folder_.File("none");
  ExpectRefused(options, ExitCode::kBadData, folder_.File("none"));
}

TEST_F(BuildTest, RefusesAnAdapterThatDoesNotFit) {
  const auto refused = [this](const TinyModel& adapter, const std::string& naming) {
    ExpectRefused(Options(Base(), adapter), ExitCode::kBadData, naming);
  };
  for (const auto& [name, tensor] : Adapter().tensors) {
    TinyModel missing = Adapter();
    missing.tensors.erase(name);
    refused(missing, name);
    for (size_t d = 0; d < tensor.shape.size(); ++d) {
      TinyModel longer = Adapter();
      longer.tensors[name].shape[d] += 32;
      longer.contents.erase(name);
      const bool rank = absl::StrContains(name, "fc1") && d == 1;
      const bool update = absl::StrContains(name, ".lora_");
      refused(longer, rank ? "fc2" : update ? name.substr(0, name.find(".lora_")) : name);
    }
  }
  for (const char* key :
       {"general.architecture", "general.type", "adapter.type", "isotherm.adapter.activation"}) {
    TinyModel other = Adapter();
    other.keys[key] = TinyModel::Text("other");
    refused(other, key);
    other.keys.erase(key);
    refused(other, key);
  }
}

TEST_F(BuildTest, RefusesAFormatThatItDoesNotWrite) {
  BuildOptions options = Options(Base(), Adapter());
  options.format = DType::kQ4_1;
  ExpectRefused(options, ExitCode::kUsage, "choose q8_0, f16 or q4_0");
}

TEST_F(BuildTest, SaysWhichFolderCannotBeWritten) {
  BuildOptions options = Options(Base(), Adapter());
  options.output_path = folder_.File("none/out.gguf");
  ExpectRefused(options, ExitCode::kShortage, "none/out.gguf");
}

}  // namespace
}  // namespace isotherm
