#include "models/model_file.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <thread>
#include <tuple>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/tiny_model.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::unique_ptr<ModelFile> OpenOrDie(const TinyModel& tiny) {
  const MemoryFile file(tiny.Bytes());
  auto model = ModelFile::Open(file.path());
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

void ExpectRefused(const TinyModel& tiny, const std::string& naming) {
  const MemoryFile file(tiny.Bytes());
  const absl::Status status = ModelFile::Open(file.path()).status();
  ASSERT_FALSE(status.ok()) << "wanted an error with: " << naming;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
}

std::vector<std::byte> Pack(const ModelFile& model, int64_t layer, int64_t first, int64_t count) {
  std::vector<std::byte> out(static_cast<size_t>(count * model.bundle_layout().bundle_bytes),
                             std::byte{0xee});
  const absl::Status status = model.PackBundles(layer, first, count, out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

TEST(ModelFileTest, ReadsThePowerInferModelsConfig) {
  const auto model = OpenOrDie(TinyModel(/*is_powerinfer=*/true));
  ASSERT_NE(model, nullptr);
  const ModelConfig& config = model->config();
  EXPECT_EQ(config.name, "tiny");
  EXPECT_EQ(config.activation, Activation::kRelu);
  EXPECT_TRUE(config.sparse);
  EXPECT_EQ(config.sparse_threshold, 0.25f);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.model_dim, 64);
  EXPECT_EQ(config.ffn_dim, 96);
  EXPECT_EQ(config.num_q_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope_dims, 16);
  EXPECT_EQ(config.vocab_size, 11);
  EXPECT_TRUE(config.tied_output);
  EXPECT_EQ(model->repacked(), "");
}

TEST(ModelFileTest, TakesADenseModelAsSiluUnlessToldOtherwise) {
  const MemoryFile file(TinyModel(/*is_powerinfer=*/false).Bytes());
  const auto silu = ModelFile::Open(file.path());
  const auto relu = ModelFile::Open(file.path(), {.activation = Activation::kRelu});
  ASSERT_TRUE(silu.ok() && relu.ok());
  EXPECT_EQ((*silu)->config().activation, Activation::kSilu);
  EXPECT_FALSE((*silu)->config().sparse);
  EXPECT_EQ((*relu)->config().activation, Activation::kRelu);
  EXPECT_NE((*silu)->config().digest, (*relu)->config().digest);
}

TEST(ModelFileTest, TakesOptionsOverTheFileAndRefusesThoseThatCannotBe) {
  const MemoryFile file(TinyModel(/*is_powerinfer=*/true).Bytes());
  const auto close = ModelFile::Open(file.path(), {.sparse_threshold = 0.5f});
  const auto next = ModelFile::Open(file.path(), {.sparse_threshold = std::nextafter(0.5f, 1.0f)});
  ASSERT_TRUE(close.ok() && next.ok());
  EXPECT_EQ((*close)->config().sparse_threshold, 0.5f);
  EXPECT_NE((*close)->config().digest, (*next)->config().digest);
  for (const ModelOptions& options :
       {ModelOptions{.activation = Activation::kSilu}, ModelOptions{.sparse_threshold = kNan},
        ModelOptions{.sparse_threshold = kInfinity}}) {
    EXPECT_EQ(ExitCodeOf(ModelFile::Open(file.path(), options).status()), ExitCode::kUsage);
  }
}

class ModelFileTypesTest : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, ModelFileTypesTest,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                         DType::kQ4_0, DType::kQ4_1),
                         [](const auto& test) { return std::string(Name(test.param)); });

TEST_P(ModelFileTypesTest, ReadsMatricesAsStoredButQ4_1AsQ8_0) {
  const TinyModel tiny(/*is_powerinfer=*/true, GetParam());
  const auto model = OpenOrDie(tiny);
  ASSERT_NE(model, nullptr);
  const std::string name = ModelFile::LayerTensor(1, "attn_q");
  const auto matrix = model->ReadMatrix(name);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_EQ(matrix->rows, 64);
  EXPECT_EQ(matrix->columns, 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix->data()) % 64, 0u);
  const std::string stored = TinyModel::Encoded(name, tiny.tensors.at(name));
  if (GetParam() != DType::kQ4_1) {
    EXPECT_EQ(matrix->dtype, GetParam());
    ASSERT_EQ(matrix->storage.size(), stored.size());
    EXPECT_EQ(std::memcmp(matrix->data(), stored.data(), stored.size()), 0);
    return;
  }
  EXPECT_EQ(matrix->dtype, DType::kQ8_0);
  EXPECT_THAT(model->repacked(), HasSubstr("Q4_1 weights are repacked to Q8_0"));
  std::vector<float> wanted(64), got(64);
  for (int64_t r = 0; r < matrix->rows; ++r) {
    const auto* row = reinterpret_cast<const std::byte*>(stored.data()) + r * 40;
    ASSERT_TRUE(DecodeRow(DType::kQ4_1, row, wanted).ok());
    ASSERT_TRUE(DecodeRow(DType::kQ8_0, matrix->data() + r * matrix->row_bytes, got).ok());
    // Half a step of 1/127, and the scale's own rounding.
    for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(got[i], wanted[i], 0.5f / 127 + 0x1p-11f);
  }
}

TEST_P(ModelFileTypesTest, PacksANeuronsThreeRowsAndZeroesThePadding) {
  const auto model = OpenOrDie(TinyModel(/*is_powerinfer=*/true, GetParam()));
  ASSERT_NE(model, nullptr);
  const BundleLayout& layout = model->bundle_layout();
  EXPECT_EQ(layout.bundle_bytes % 64, 0);
  EXPECT_EQ(layout.num_neurons, 96);
  const std::vector<std::byte> bundles = Pack(*model, 1, 0, layout.num_neurons);
  std::vector<float> row(64);
  for (int64_t n = 0; n < layout.num_neurons; ++n) {
    const std::byte* bundle = bundles.data() + n * layout.bundle_bytes;
    int64_t part = 0;
    for (const char* stem : {"ffn_gate", "ffn_up", "ffn_down_t"}) {
      ASSERT_TRUE(DecodeRow(layout.dtype, bundle + part * layout.row_bytes, row).ok());
      ++part;
      const float step = Info(layout.dtype).block_elements == 1 ? 0
                         : GetParam() == DType::kQ8_0           ? 0.51f / 127
                         : GetParam() == DType::kQ4_0           ? 1.01f / 8
                                                                : 0.52f * 2 / 15 + 0.51f / 127;
      for (int64_t c = 0; c < 64; ++c) {
        EXPECT_NEAR(row[static_cast<size_t>(c)],
                    TinyModel::Weight(ModelFile::LayerTensor(1, stem), n, c), step + 0x1p-10f)
            << stem << " neuron " << n;
      }
    }
    for (int64_t i = 3 * layout.row_bytes; i < layout.bundle_bytes; ++i) {
      EXPECT_EQ(bundle[i], std::byte{0});
    }
  }
}

TEST_P(ModelFileTypesTest, PacksADenseFileLikeAPowerInferFileOfTheSameWeights) {
  const auto sparse = OpenOrDie(TinyModel(/*is_powerinfer=*/true, GetParam()));
  const auto dense = OpenOrDie(TinyModel(/*is_powerinfer=*/false, GetParam()));
  ASSERT_TRUE(sparse != nullptr && dense != nullptr);
  const BundleLayout& layout = sparse->bundle_layout();
  ASSERT_EQ(layout.Hash(), dense->bundle_layout().Hash());
  const std::vector<std::byte> wanted = Pack(*sparse, 0, 0, 96);
  const std::vector<std::byte> got = Pack(*dense, 0, 0, 96);
  if (Info(GetParam()).block_elements == 1) {
    EXPECT_EQ(got, wanted);
    return;
  }
  EXPECT_THAT(dense->repacked(), HasSubstr("ffn_down is requantised"));
  // The down row is what the stored matrix's column decodes to, encoded once more.
  const std::string name = ModelFile::LayerTensor(0, "ffn_down");
  const TinyModel tiny(/*is_powerinfer=*/false, GetParam());
  const std::string stored = TinyModel::Encoded(name, tiny.tensors.at(name));
  const int64_t stored_bytes = RowBytes(GetParam(), 96).value();
  std::vector<std::vector<float>> decoded(64, std::vector<float>(96));
  for (size_t r = 0; r < 64; ++r) {
    ASSERT_TRUE(DecodeRow(GetParam(),
                          reinterpret_cast<const std::byte*>(stored.data()) +
                              static_cast<int64_t>(r) * stored_bytes,
                          decoded[r])
                    .ok());
  }
  std::vector<float> column(64);
  std::vector<std::byte> encoded(static_cast<size_t>(layout.row_bytes));
  for (size_t n = 0; n < 96; ++n) {
    for (size_t r = 0; r < 64; ++r) column[r] = decoded[r][n];
    ASSERT_TRUE(EncodeRow(layout.dtype, column, encoded.data()).ok());
    const std::byte* bundle = got.data() + static_cast<int64_t>(n) * layout.bundle_bytes;
    EXPECT_EQ(std::memcmp(bundle, wanted.data() + (bundle - got.data()),
                          static_cast<size_t>(2 * layout.row_bytes)),
              0);
    EXPECT_EQ(std::memcmp(bundle + 2 * layout.row_bytes, encoded.data(), encoded.size()), 0);
  }
}

TEST_P(ModelFileTypesTest, PacksAnyRangeLikeTheWholeLayerOnAnyThread) {
  for (const bool powerinfer : {true, false}) {
    const auto model = OpenOrDie(TinyModel(powerinfer, GetParam()));
    ASSERT_NE(model, nullptr);
    const int64_t bytes = model->bundle_layout().bundle_bytes;
    const std::vector<std::byte> whole = Pack(*model, 1, 0, 96);
    std::vector<std::byte> parts(whole.size());
    std::vector<std::jthread> threads;
    int64_t first = 0;
    for (const int64_t count : {1, 31, 33, 7, 0, 23, 1}) {
      threads.emplace_back([&model, &parts, first, count, bytes] {
        EXPECT_TRUE(model
                        ->PackBundles(1, first, count,
                                      std::span(parts).subspan(static_cast<size_t>(first * bytes),
                                                               static_cast<size_t>(count * bytes)))
                        .ok());
      });
      first += count;
    }
    threads.clear();
    ASSERT_EQ(first, 96);
    EXPECT_EQ(parts, whole);
  }
}

TEST(ModelFileTest, RefusesRangesOutsideTheLayer) {
  const auto model = OpenOrDie(TinyModel(/*is_powerinfer=*/true));
  ASSERT_NE(model, nullptr);
  std::vector<std::byte> out(static_cast<size_t>(model->bundle_layout().bundle_bytes));
  for (const auto& [layer, first, count] :
       std::initializer_list<std::tuple<int64_t, int64_t, int64_t>>{
           {-1, 0, 1}, {2, 0, 1}, {0, -1, 1}, {0, 96, 1}, {0, 0, 2}, {0, 0, -1}}) {
    EXPECT_EQ(model->PackBundles(layer, first, count, out).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ModelFileTest, RepacksMixedNeuronsToOneType) {
  TinyModel mixed(/*is_powerinfer=*/true, DType::kQ8_0);
  mixed.tensors["blk.1.ffn_up.weight"].dtype = DType::kQ4_0;
  const auto quantised = OpenOrDie(mixed);
  ASSERT_NE(quantised, nullptr);
  EXPECT_EQ(quantised->bundle_layout().dtype, DType::kQ8_0);
  EXPECT_THAT(quantised->repacked(), HasSubstr("different types are repacked to Q8_0"));

  TinyModel plain(/*is_powerinfer=*/true, DType::kF16);
  plain.tensors["blk.0.ffn_down_t.weight"].dtype = DType::kF32;
  const auto halves = OpenOrDie(plain);
  ASSERT_NE(halves, nullptr);
  EXPECT_EQ(halves->bundle_layout().dtype, DType::kF16);
  EXPECT_EQ(Pack(*halves, 0, 0, 96),
            Pack(*OpenOrDie(TinyModel(/*is_powerinfer=*/true, DType::kF16)), 0, 0, 96));
}

TEST(ModelFileTest, NamesEachTensorThatIsMissingOrMisshaped) {
  for (const char* architecture : {"llama", "bamboo", "falcon", "opt"}) {
    for (const bool powerinfer : {true, false}) {
      const TinyModel good(powerinfer, DType::kF16, architecture);
      ASSERT_NE(OpenOrDie(good), nullptr) << architecture;
      for (const auto& [name, tensor] : good.tensors) {
        TinyModel missing = good;
        missing.tensors.erase(name);
        ExpectRefused(missing, name);
        for (size_t d = 0; d < tensor.shape.size(); ++d) {
          if (name == "token_embd.weight" && d == 1) continue;  // the vocabulary is its rows
          TinyModel longer = good;
          longer.tensors[name].shape[d] += 32;
          // A longer fc1 is another rank: its fc2 is what does not fit.
          const bool rank = absl::StrContains(name, "fc1") && d == 1;
          ExpectRefused(longer, rank ? "fc2" : name);
        }
        TinyModel deeper = good;
        deeper.tensors[name].shape.resize(2, 1);
        deeper.tensors[name].shape.push_back(2);
        ExpectRefused(deeper, name);
      }
    }
  }
}

TEST(ModelFileTest, DescribesEachArchitecturesGraph) {
  const auto config = [](const std::string& architecture) {
    return OpenOrDie(TinyModel(/*is_powerinfer=*/true, DType::kF16, architecture))->config();
  };
  const ModelConfig llama = config("llama"), bamboo = config("bamboo");
  for (const ModelConfig& c : {llama, bamboo}) {
    EXPECT_EQ(c.norm, NormKind::kRms);
    EXPECT_TRUE(c.gated && c.rotary);
    EXPECT_EQ(c.bundle_rows(), 3);
    EXPECT_FALSE(c.parallel_attention || c.fused_qkv || c.rope_neox || c.attention_bias ||
                 c.ffn_bias || c.learned_positions);
    EXPECT_EQ(c.ffn_norm_tensor, "ffn_norm");
    EXPECT_EQ(c.activate_up, c.architecture == Architecture::kBamboo);
  }
  const ModelConfig falcon = config("falcon");
  EXPECT_EQ(falcon.norm, NormKind::kLayer);
  EXPECT_TRUE(falcon.parallel_attention && falcon.fused_qkv && falcon.rope_neox && falcon.rotary);
  EXPECT_FALSE(falcon.gated || falcon.attention_bias || falcon.ffn_bias || falcon.activate_up);
  EXPECT_EQ(falcon.bundle_rows(), 2);
  EXPECT_EQ(falcon.attention_norm_tensor, "attn_norm_2");
  EXPECT_EQ(falcon.ffn_norm_tensor, "attn_norm");
  const ModelConfig opt = config("opt");
  EXPECT_EQ(opt.norm, NormKind::kLayer);
  EXPECT_EQ(opt.norm_eps, 1e-5f);
  EXPECT_TRUE(opt.attention_bias && opt.ffn_bias && opt.learned_positions);
  EXPECT_FALSE(opt.gated || opt.rotary || opt.parallel_attention || opt.fused_qkv);
  EXPECT_EQ(opt.rope_dims, 0);
  EXPECT_EQ(opt.position_offset, 2);
  for (const ModelConfig& c : {llama, bamboo, falcon, opt}) {
    EXPECT_TRUE(c.sparse);
    EXPECT_EQ(c.activation, Activation::kRelu);
    EXPECT_EQ(c.context_length, c.architecture == Architecture::kOpt ? 126 : 128);
  }
}

TEST(ModelFileTest, AFalconWithOneNormFeedsBothFromIt) {
  TinyModel one(/*is_powerinfer=*/true, DType::kF16, "falcon");
  for (const char* part : {"weight", "bias"}) {
    one.tensors.erase(absl::StrCat("blk.0.attn_norm_2.", part));
    // One layer of two without is no 7B: it is damaged.
    ExpectRefused(one, absl::StrCat("blk.0.attn_norm_2.weight is missing"));
  }
  for (const char* part : {"weight", "bias"}) {
    one.tensors.erase(absl::StrCat("blk.1.attn_norm_2.", part));
  }
  const auto model = OpenOrDie(one);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->config().attention_norm_tensor, "attn_norm");
  EXPECT_EQ(model->config().ffn_norm_tensor, "attn_norm");
}

TEST(ModelFileTest, RefusesAFalconWhoseQkvIsNotSorted) {
  TinyModel falcon(/*is_powerinfer=*/false, DType::kF16, "falcon");
  falcon.keys["falcon.tensor_data_layout"] = TinyModel::Text("by head");
  ExpectRefused(falcon, "key falcon.tensor_data_layout is 'by head'; jploski is wanted");
  falcon.keys.erase("falcon.tensor_data_layout");
  ExpectRefused(falcon, "key falcon.tensor_data_layout is missing");
}

TEST(ModelFileTest, TakesThePositionTableWithOrWithoutItsTwoExtraRows) {
  TinyModel opt(/*is_powerinfer=*/true, DType::kF16, "opt");
  EXPECT_EQ(OpenOrDie(opt)->config().context_length, TinyModel::kContext - 2);
  opt.tensors["position_embd.weight"].shape[1] = TinyModel::kContext + 2;
  EXPECT_EQ(OpenOrDie(opt)->config().context_length, TinyModel::kContext);
  for (const int64_t rows : {TinyModel::kContext - 1, TinyModel::kContext + 1, int64_t{2}}) {
    opt.tensors["position_embd.weight"].shape[1] = rows;
    ExpectRefused(opt, absl::StrCat("position_embd.weight has ", rows, " rows"));
  }
}

TEST(ModelFileTest, TakesADenseModelsActivationFromItsArchitecture) {
  const auto open = [](const std::string& architecture, std::optional<Activation> asked) {
    const MemoryFile file(TinyModel(/*is_powerinfer=*/false, DType::kF16, architecture).Bytes());
    const auto model = ModelFile::Open(file.path(), {.activation = asked});
    return model.ok() ? absl::StatusOr<Activation>((*model)->config().activation)
                      : absl::StatusOr<Activation>(model.status());
  };
  const std::vector<std::pair<std::string, Activation>> own = {{"llama", Activation::kSilu},
                                                               {"bamboo", Activation::kRelu},
                                                               {"falcon", Activation::kGelu},
                                                               {"opt", Activation::kRelu}};
  for (const auto& [architecture, dense] : own) {
    EXPECT_EQ(*open(architecture, {}), dense) << architecture;
    for (const Activation asked : {Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
      const auto got = open(architecture, asked);
      if (asked == Activation::kRelu || asked == dense) {
        EXPECT_EQ(*got, asked) << architecture;
      } else {
        EXPECT_EQ(ExitCodeOf(got.status()), ExitCode::kUsage) << architecture;
        EXPECT_THAT(std::string(got.status().message()), HasSubstr(std::string(Name(dense))))
            << architecture;
      }
    }
  }
}

TEST(ModelFileTest, PacksTwoRowsWhereThereIsNoGate) {
  for (const char* architecture : {"falcon", "opt"}) {
    for (const bool powerinfer : {true, false}) {
      const auto model = OpenOrDie(TinyModel(powerinfer, DType::kF16, architecture));
      ASSERT_NE(model, nullptr);
      const BundleLayout& layout = model->bundle_layout();
      EXPECT_EQ(layout.rows, 2);
      EXPECT_EQ(layout.bundle_bytes, 2 * 64 * 2);
      const std::vector<std::byte> bundles = Pack(*model, 1, 0, 96);
      std::vector<float> row(64);
      for (int64_t n = 0; n < 96; ++n) {
        const std::byte* bundle = bundles.data() + n * layout.bundle_bytes;
        for (const char* stem : {"ffn_up", "ffn_down"}) {
          ASSERT_TRUE(DecodeRow(DType::kF16, bundle, row).ok());
          bundle += layout.row_bytes;
          for (int64_t c = 0; c < 64; ++c) {
            EXPECT_EQ(row[static_cast<size_t>(c)],
                      TinyModel::Weight(ModelFile::LayerTensor(1, stem), n, c));
          }
        }
      }
    }
  }
}

TEST(ModelFileTest, RefusesTypesItDoesNotComputeWith) {
  TinyModel tiny(/*is_powerinfer=*/false);
  tiny.tensors["blk.0.attn_q.weight"].dtype = static_cast<DType>(24);  // I8
  tiny.contents["blk.0.attn_q.weight"] = std::string(64 * 64, 1);
  ExpectRefused(tiny, "blk.0.attn_q.weight");
}

TEST(ModelFileTest, RefusesTensorsWithoutWhichAnswersWouldBeWrong) {
  for (const char* name :
       {"blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight",
        "blk.1.attn_qkv.weight", "blk.1.attn_norm_2.weight", "output.bias", "output_norm.bias",
        "position_embd.weight", "token_embd_norm.weight"}) {
    TinyModel tiny(/*is_powerinfer=*/false);
    tiny.tensors[name] = {{64}};
    ExpectRefused(tiny, name);
  }
  for (const char* name : {"blk.0.ffn_gate.weight", "blk.0.ffn_norm.weight", "blk.1.attn_qkv.bias",
                           "blk.1.ffn_up.bias", "blk.0.ffn_down.bias"}) {
    TinyModel tiny(/*is_powerinfer=*/false, DType::kF16, "falcon");
    tiny.tensors[name] = {{64}};
    ExpectRefused(tiny, name);
  }
  TinyModel harmless(/*is_powerinfer=*/false);
  harmless.tensors["blk.0.attn_rot_embd.weight"] = {{64}};
  harmless.tensors["notes"] = {{64}};
  EXPECT_NE(OpenOrDie(harmless), nullptr);
}

TEST(ModelFileTest, RefusesEachKeyUnderEachOtherTag) {
  const TinyModel good(/*is_powerinfer=*/true);
  const std::string zeros(64, '\0');
  for (const auto& [key, value] : good.keys) {
    for (uint32_t tag = 0; tag <= 13; ++tag) {
      const auto own = static_cast<unsigned char>(value[0]);
      const bool integer = (tag <= 5 || tag == 10 || tag == 11);
      if (tag == own || (key == "general.name")) continue;
      TinyModel changed = good;
      // Zero: even a type that is allowed gives a value that is not.
      if (tag == 8) {
        changed.keys[key] = TinyModel::Text("x");
      } else if (tag == 9) {
        changed.keys[key] = GgufBytes().Put(tag).Put(uint32_t{own}).Put<uint64_t>(0).bytes();
      } else {
        const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8, 8};
        changed.keys[key] = GgufBytes().Put(tag).Raw(zeros.substr(0, sizes[tag])).bytes();
      }
      if (key == "powerinfer.sparse_threshold" && tag == 12) continue;  // 0.0 as f64 is right
      SCOPED_TRACE(absl::StrCat(key, " as type ", tag, integer ? " (integer)" : ""));
      ExpectRefused(changed, key);
    }
    if (key == "general.name" || key == "llama.attention.head_count_kv" ||
        key == "llama.rope.dimension_count" || key == "llama.rope.freq_base" ||
        key == "powerinfer.sparse_threshold") {
      continue;  // these have defaults
    }
    TinyModel missing = good;
    missing.keys.erase(key);
    ExpectRefused(missing, key);
  }
}

TEST(ModelFileTest, RefusesNumbersThatMakeNoModel) {
  const auto with = [](const std::string& key, const std::string& value) {
    TinyModel tiny(/*is_powerinfer=*/true);
    tiny.keys[key] = value;
    return tiny;
  };
  const auto u32 = [](uint32_t value) { return TinyModel::Value<uint32_t>(4, value); };
  const auto u64 = [](uint64_t value) { return TinyModel::Value<uint64_t>(10, value); };
  const auto f32 = [](float value) { return TinyModel::Value<float>(6, value); };
  for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.head_count_kv", "llama.rope.dimension_count"}) {
    ExpectRefused(with(key, u32(0)), key);
    ExpectRefused(with(key, u32(~0u)), key);
    ExpectRefused(with(key, u64(~uint64_t{0})), key);
    ExpectRefused(with(key, u64(uint64_t{1} << 63)), key);
    ExpectRefused(with(key, TinyModel::Value<int32_t>(5, -1)), key);
  }
  ExpectRefused(with("llama.block_count", u32(1025)), "llama.block_count");
  ExpectRefused(with("llama.block_count", u32(3)), "blk.2.");
  ExpectRefused(with("llama.attention.head_count", u32(3)), "head_count");
  ExpectRefused(with("llama.attention.head_count_kv", u32(3)), "head_count_kv");
  ExpectRefused(with("llama.attention.value_length", u32(8)), "value_length");
  ExpectRefused(with("llama.rope.dimension_count", u32(15)), "dimension_count");
  ExpectRefused(with("llama.rope.dimension_count", u32(18)), "dimension_count");
  for (const char* key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base",
                          "llama.rope.scale_linear"}) {
    for (const float value : {kNan, kInfinity, -kInfinity, 0.0f, -1.0f}) {
      ExpectRefused(with(key, f32(value)), key);
    }
  }
  ExpectRefused(with("powerinfer.sparse_threshold", f32(kNan)), "sparse_threshold");
  ExpectRefused(with("llama.rope.scaling.type", TinyModel::Text("yarn")), "yarn");
  ExpectRefused(with("llama.expert_count", u32(8)), "experts");
  ExpectRefused(with("general.architecture", TinyModel::Text("gpt\x1b[2J")), "gpt\\x1b[2J");
  ExpectRefused(with("general.type", TinyModel::Text("adapter")), "adapter");
  TinyModel scaled = with("llama.rope.scaling.type", TinyModel::Text("linear"));
  scaled.keys["llama.rope.scaling.factor"] = f32(kInfinity);
  ExpectRefused(scaled, "scaling.factor");
  scaled.keys["llama.rope.scaling.factor"] = f32(4);
  EXPECT_EQ(OpenOrDie(scaled)->config().rope_scale, 4.0f);
}

TEST(ModelFileTest, RefusesAVocabularyThatIsNotTheEmbeddingsRows) {
  for (const uint64_t count : {10u, 12u}) {
    TinyModel tiny(/*is_powerinfer=*/true);
    GgufBytes tokens;
    tokens.Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(count);
    for (uint64_t i = 0; i < count; ++i) tokens.Text("t");
    tiny.keys["tokenizer.ggml.tokens"] = tokens.bytes();
    ExpectRefused(tiny, absl::StrCat(count, " tokens"));
  }
}

// Scales and weights are looked at when they are read, which is before a service is ready.
TEST_P(ModelFileTypesTest, RefusesInfiniteScalesAndWeights) {
  for (const char* stem : {"attn_k", "ffn_gate", "ffn_down_t"}) {
    for (const uint16_t half : {uint16_t{0x7c00}, uint16_t{0xfe00}}) {
      TinyModel tiny(/*is_powerinfer=*/true, GetParam());
      const std::string name = ModelFile::LayerTensor(0, stem);
      std::string bytes = TinyModel::Encoded(name, tiny.tensors.at(name));
      const int64_t row_bytes = RowBytes(GetParam(), 64).value();
      const uint32_t single = half == 0x7c00 ? 0x7f800000u : 0xffc00000u;
      const uint16_t brain = static_cast<uint16_t>(single >> 16);
      char* at = bytes.data() + 5 * row_bytes;
      if (GetParam() == DType::kF32) {
        std::memcpy(at, &single, 4);
      } else {
        std::memcpy(at, GetParam() == DType::kBF16 ? &brain : &half, 2);
      }
      tiny.contents[name] = bytes;
      const auto model = OpenOrDie(tiny);
      ASSERT_NE(model, nullptr);
      std::vector<std::byte> out(static_cast<size_t>(96 * model->bundle_layout().bundle_bytes));
      for (const absl::Status& status :
           {model->ReadMatrix(name).status(), stem[0] == 'f' ? model->PackBundles(0, 0, 96, out)
                                                             : model->ReadMatrix(name).status()}) {
        EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
        EXPECT_THAT(std::string(status.message()), HasSubstr(name + " row 5 holds a value"));
      }
    }
  }
}

TEST(ModelFileTest, RefusesWeightsThatOnlyTheComputedTypeCannotHold) {
  TinyModel tiny(/*is_powerinfer=*/true, DType::kF32);
  const std::string name = ModelFile::LayerTensor(0, "ffn_up");
  std::string bytes = TinyModel::Encoded(name, tiny.tensors.at(name));
  const float large = 1e6f;
  std::memcpy(bytes.data() + 4 * 64 * 7, &large, 4);
  tiny.contents[name] = bytes;
  const auto model = OpenOrDie(tiny);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(model->ReadMatrix(name).ok());
  std::vector<std::byte> out(static_cast<size_t>(96 * model->bundle_layout().bundle_bytes));
  const absl::Status status = model->PackBundles(0, 0, 96, out);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 7"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("conversion to F16"));
}

TEST(ModelFileTest, ReportsAFileThatShrinksWhileItLoads) {
  for (const bool powerinfer : {true, false}) {
    MemoryFile file(TinyModel(powerinfer).Bytes());
    const auto model = ModelFile::Open(file.path());
    ASSERT_TRUE(model.ok()) << model.status();
    file.Truncate(TinyModel(powerinfer).Bytes().size() / 2);
    int failed = 0;
    for (const GgufTensor& tensor : (*model)->gguf().tensors()) {
      const absl::Status status = (*model)->ReadMatrix(tensor.name).status();
      if (status.ok()) continue;
      ++failed;
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
      EXPECT_THAT(std::string(status.message()), HasSubstr("shorter"));
    }
    EXPECT_GT(failed, 5);
    std::vector<std::byte> out(static_cast<size_t>(96 * (*model)->bundle_layout().bundle_bytes));
    EXPECT_EQ((*model)->PackBundles(1, 0, 96, out).code(), absl::StatusCode::kDataLoss);
  }
}

TEST(ModelFileTest, ReadsVectorsOfOneRowOnly) {
  const auto model = OpenOrDie(TinyModel(/*is_powerinfer=*/true));
  ASSERT_NE(model, nullptr);
  const auto norm = model->ReadVector("output_norm.weight");
  ASSERT_TRUE(norm.ok()) << norm.status();
  ASSERT_EQ(norm->size(), 64u);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ((*norm)[i], TinyModel::Weight("output_norm.weight", 0, static_cast<int64_t>(i)));
  }
  EXPECT_FALSE(model->ReadVector("token_embd.weight").ok());
  EXPECT_FALSE(model->ReadVector("nothing").ok());
}

}  // namespace
}  // namespace isotherm
