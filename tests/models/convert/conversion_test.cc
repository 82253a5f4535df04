#include "models/convert/conversion.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <span>

#include "absl/strings/match.h"
#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/bundle_file.h"
#include "models/convert/conversion_plan.h"
#include "models/convert/tensor_converter.h"
#include "models/inspect/inspect.h"
#include "models/profile/activation_profile.h"
#include "tests/models/random_blocks.h"
#include "tests/models/temp_folder.h"
#include "tests/models/tiny_model.h"

namespace isotherm {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kArchitectures[] = {"llama", "bamboo", "falcon", "opt"};

std::string Stored(const GgufFile& file, const std::string& name) {
  const GgufTensor* tensor = file.FindTensor(name);
  EXPECT_NE(tensor, nullptr) << name;
  if (tensor == nullptr) return "";
  std::string bytes(static_cast<size_t>(tensor->bytes), '\0');
  EXPECT_TRUE(
      file.Read(*tensor, 0, std::as_writable_bytes(std::span(bytes.data(), bytes.size()))).ok());
  return bytes;
}

std::vector<float> Decoded(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = *file.FindTensor(name);
  const std::string bytes = Stored(file, name);
  std::vector<float> out(static_cast<size_t>(tensor.rows() * tensor.columns()));
  EXPECT_TRUE(DecodeRow(static_cast<DType>(tensor.ggml_type),
                        reinterpret_cast<const std::byte*>(bytes.data()), out)
                  .ok());
  return out;
}

class ConversionTest : public testing::Test {
 protected:
  std::string Write(const TinyModel& tiny, const std::string& name = "in.gguf") {
    return folder_.Write(name, tiny.Bytes());
  }
  ConversionOptions Options(ConversionOptions o = {}) {
    o.input_path = folder_.File(in_);
    o.output_path = folder_.File(out_);
    if (o.num_threads == 0) o.num_threads = 2;
    return o;
  }
  ConversionReport Convert(const ConversionOptions& o = {}) {
    const auto report = ConvertModel(Options(o));
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : ConversionReport();
  }
  // Nothing may be left of a conversion that failed.
  void ExpectRefused(const ConversionOptions& o, ExitCode code, const std::string& saying) {
    const std::set<std::string> before = folder_.Names();
    const absl::Status status = ConvertModel(Options(o)).status();
    EXPECT_EQ(ExitCodeOf(status), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(saying));
    EXPECT_EQ(folder_.Names(), before);
  }
  std::unique_ptr<GgufFile> Open(const std::string& name) {
    auto file = GgufFile::Open(folder_.File(name));
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  // As `tiny` would be written, predictors aside.
  void ExpectTensorsOf(const TinyModel& tiny, const std::string& name, bool predictors) {
    const auto file = Open(name);
    EXPECT_EQ(file->is_powerinfer(), tiny.powerinfer);
    size_t count = 0;
    for (const auto& [tensor, want] : tiny.tensors) {
      if (!predictors && absl::StrContains(tensor, ".fc")) continue;
      ++count;
      EXPECT_EQ(Stored(*file, tensor), TinyModel::Encoded(tensor, want)) << tensor;
      const GgufTensor* got = file->FindTensor(tensor);
      ASSERT_NE(got, nullptr);
      EXPECT_EQ(got->ggml_type, static_cast<uint32_t>(want.dtype)) << tensor;
      EXPECT_THAT(std::vector<int64_t>(got->shape.begin(), got->shape.begin() + got->num_dims),
                  testing::ElementsAreArray(want.shape))
          << tensor;
    }
    EXPECT_EQ(file->tensors().size(), count);
  }

  TempFolder folder_;
  std::string in_ = "in.gguf", out_ = "out.gguf";
};

TEST_F(ConversionTest, TurnsPlainTypesToTheOtherLayoutAndBackBitForBit) {
  for (const char* architecture : kArchitectures) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(absl::StrCat(architecture, " ", Name(dtype)));
      const TinyModel sparse(/*is_powerinfer=*/true, dtype, architecture);
      const TinyModel dense(/*is_powerinfer=*/false, dtype, architecture);
      in_ = "sparse.gguf", out_ = "dense.gguf";
      Write(sparse, in_);
      Convert({.container = Container::kGguf, .drop_predictors = true, .replace = true});
      ExpectTensorsOf(dense, out_, false);
      in_ = "dense.gguf", out_ = "again.gguf";
      Convert({.container = Container::kPowerInfer, .replace = true});
      ExpectTensorsOf(sparse, out_, false);
      in_ = "again.gguf", out_ = "twice.gguf";
      Convert({.container = Container::kGguf, .replace = true});
      EXPECT_EQ(folder_.Content("twice.gguf"), folder_.Content("dense.gguf"));
    }
  }
}

TEST_F(ConversionTest, ThePredictorsAreKeptUnlessTheUserGivesThemUp) {
  const TinyModel sparse(/*is_powerinfer=*/true, DType::kF16, "falcon");
  Write(sparse);
  const TinyModel wanted(/*is_powerinfer=*/true, DType::kBF16, "falcon");
  Convert({.type = DType::kBF16});
  const auto out = Open(out_);
  for (const auto& [name, tensor] : wanted.tensors) {
    const bool predictor = absl::StrContains(name, ".fc");
    EXPECT_EQ(static_cast<DType>(out->FindTensor(name)->ggml_type),
              predictor ? DType::kBF16 : tensor.dtype)
        << name;
  }
  ExpectRefused({.container = Container::kGguf, .replace = true}, ExitCode::kUsage,
                "--drop-predictors");
  const ConversionReport report =
      Convert({.container = Container::kGguf, .drop_predictors = true, .replace = true});
  EXPECT_THAT(report.notes, Contains(HasSubstr("predictors are left out")));
  const auto model = ModelFile::Open(folder_.File(out_));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE((*model)->config().sparse);
}

TEST_F(ConversionTest, KeepsEveryKeyOfEveryTypeInItsOrder) {
  TinyModel tiny(/*is_powerinfer=*/true);
  const auto array = [](uint32_t element, uint64_t count) {
    GgufBytes bytes;
    bytes.Put<uint32_t>(9).Put(element).Put(count);
    return bytes;
  };
  tiny.keys["a.bool"] = TinyModel::Value<uint8_t>(7, 1);
  tiny.keys["a.u8"] = TinyModel::Value<uint8_t>(0, 200);
  tiny.keys["a.i16"] = TinyModel::Value<int16_t>(3, -5);
  tiny.keys["a.i64"] = TinyModel::Value<int64_t>(11, -7);
  tiny.keys["a.f64"] = TinyModel::Value<double>(12, 0.1);
  tiny.keys["a.text"] = TinyModel::Text("caf\xc3\xa9\n");
  tiny.keys["a.texts"] = array(8, 3).Text("").Text("x").Text(std::string(300, 'y')).bytes();
  tiny.keys["a.none"] = array(8, 0).bytes();
  tiny.keys["a.u16s"] = array(2, 2).Put<uint16_t>(1).Put<uint16_t>(65535).bytes();
  tiny.keys["a.bools"] = array(7, 3).Put<uint8_t>(1).Put<uint8_t>(0).Put<uint8_t>(1).bytes();
  tiny.keys["z.last"] = TinyModel::Value<uint64_t>(10, uint64_t{1} << 60);
  tiny.keys["general.alignment"] = TinyModel::Value<uint32_t>(4, 32);
  Write(tiny);
  for (const ConversionOptions& o :
       {ConversionOptions{.container = Container::kGguf, .drop_predictors = true, .replace = true},
        ConversionOptions{.type = DType::kQ8_0, .replace = true}}) {
    Convert(o);
    const auto out = Open(out_);
    std::vector<std::string> order;
    for (const std::string& key : out->KeysInFileOrder()) {
      if (tiny.keys.contains(key)) order.push_back(key);
    }
    std::vector<std::string> wanted;
    for (const auto& [key, value] : tiny.keys) {
      wanted.push_back(key);
      EXPECT_EQ(out->EncodedValue(key).value_or("?"), value) << key;
    }
    EXPECT_EQ(order, wanted);
  }
}

TEST_F(ConversionTest, KeepsAnAlignmentOfTheFilesOwn) {
  TinyModel tiny(/*is_powerinfer=*/true);
  for (const uint32_t alignment : {8u, 256u}) {
    tiny.keys["general.alignment"] = TinyModel::Value<uint32_t>(4, alignment);
    tiny.alignment = alignment;
    Write(tiny);
    Convert({.type = DType::kQ4_0, .replace = true});
    const auto out = Open(out_);
    EXPECT_EQ(out->alignment(), alignment);
    for (const GgufTensor& tensor : out->tensors()) EXPECT_EQ(tensor.offset % alignment, 0);
  }
}

TEST_F(ConversionTest, RequantisesMatricesWithinTheCodecsErrorAndLeavesVectors) {
  for (const char* architecture : kArchitectures) {
    for (const bool powerinfer : {true, false}) {
      const TinyModel tiny(powerinfer, DType::kF32, architecture);
      Write(tiny);
      for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
        SCOPED_TRACE(absl::StrCat(architecture, powerinfer ? " sparse " : " dense ", Name(type)));
        Convert({.type = type, .replace = true});
        const auto in = Open(in_), out = Open(out_);
        ASSERT_EQ(in->tensors().size(), out->tensors().size());
        for (const GgufTensor& tensor : in->tensors()) {
          const GgufTensor& got = *out->FindTensor(tensor.name);
          if (tensor.num_dims == 1 || tensor.name == "position_embd.weight") {
            EXPECT_EQ(Stored(*out, tensor.name), Stored(*in, tensor.name)) << tensor.name;
            continue;
          }
          ASSERT_EQ(got.ggml_type, static_cast<uint32_t>(type)) << tensor.name;
          // Weights are up to 1, multiples of 1/64: half a step, and the scale's rounding to F16.
          const float step = type == DType::kF16    ? 0
                             : type == DType::kBF16 ? 0
                             : type == DType::kQ8_0 ? 0.5f / 127 + 0x1p-11f
                                                    : 1.0f / 8 + 0x1p-10f;
          const std::vector<float> a = Decoded(*in, tensor.name), b = Decoded(*out, tensor.name);
          // The predictors of TinyModel are Q8_0 already.
          const float coded = absl::StrContains(tensor.name, ".fc") ? 0x1p-8f : 0;
          float worst = 0;
          for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
          EXPECT_LE(worst, step + coded) << tensor.name;
          if (Info(type).block_elements > 1) {
            EXPECT_GT(worst + coded, 0);
          }
        }
        EXPECT_EQ(*out->GetInt("general.file_type"), type == DType::kF16    ? 1
                                                     : type == DType::kBF16 ? 32
                                                     : type == DType::kQ8_0 ? 7
                                                                            : 2);
        EXPECT_EQ(out->Has("general.quantization_version"), Info(type).block_elements > 1);
      }
    }
  }
}

TEST_F(ConversionTest, TurningQuantisedDownMatricesEncodesThemOnceMore) {
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    Write(TinyModel(/*is_powerinfer=*/true, type));
    const ConversionReport report =
        Convert({.container = Container::kGguf, .drop_predictors = true, .replace = true});
    EXPECT_THAT(report.notes, Contains(HasSubstr("down matrices are quantised")));
    const auto in = Open(in_), out = Open(out_);
    const std::vector<float> a = Decoded(*in, "blk.1.ffn_down_t.weight");
    const std::vector<float> b = Decoded(*out, "blk.1.ffn_down.weight");
    EXPECT_EQ(out->FindTensor("blk.1.ffn_down.weight")->ggml_type, static_cast<uint32_t>(type));
    const float step = type == DType::kQ8_0 ? 0.6f / 127 : type == DType::kQ4_0 ? 0.18f : 0.1f;
    for (size_t n = 0; n < 96; ++n) {
      for (size_t c = 0; c < 64; ++c) EXPECT_NEAR(b[c * 96 + n], a[n * 64 + c], step);
    }
    // All else is what it was.
    EXPECT_EQ(Stored(*out, "blk.1.ffn_up.weight"), Stored(*in, "blk.1.ffn_up.weight"));
  }
}

// A llama of width 256 whose matrices are all random blocks of `dtype`.
TinyModel ModelOfBlocks(bool powerinfer, DType dtype) {
  TinyModel tiny(powerinfer);
  tiny.keys["llama.embedding_length"] = TinyModel::Value<uint32_t>(4, 256);
  tiny.keys["llama.feed_forward_length"] = TinyModel::Value<uint32_t>(4, 256);
  uint32_t seed = 0;
  for (auto& [name, tensor] : tiny.tensors) {
    for (int64_t& size : tensor.shape) {
      if (size == TinyModel::kDim || size == TinyModel::kFfn) size = 256;
      if (size == TinyModel::kKvHeads * TinyModel::kHeadDim) size = 128;
    }
    if (tensor.shape.size() == 1) continue;
    if (absl::EndsWith(name, "fc1.weight")) tensor.shape[1] = 256;
    if (absl::EndsWith(name, "fc2.weight")) tensor.shape[0] = 256;
    tensor.dtype = dtype;
    const int64_t blocks = tensor.shape[0] * tensor.shape[1] / Info(dtype).block_elements;
    const std::vector<std::byte> bytes = RandomBlocks(dtype, blocks, ++seed);
    tiny.contents[name] = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return tiny;
}

TEST_F(ConversionTest, ReadsTheTypesThatOtherProgramsQuantiseTo) {
  constexpr float kTiny = 127 * 0x1p-25f;  // a scale is a multiple of 2^-24 at best
  for (const DType dtype : {DType::kQ5_0, DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    SCOPED_TRACE(Name(dtype));
    const TinyModel tiny = ModelOfBlocks(/*powerinfer=*/true, dtype);
    Write(tiny);
    const auto model = ModelFile::Open(folder_.File(in_));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->bundle_layout().dtype, DType::kQ8_0);
    EXPECT_THAT((*model)->repacked(),
                HasSubstr(absl::StrCat(Name(dtype), " weights are repacked to Q8_0")));
    // Another layout: only what has to be turned is encoded, the rest stays.
    Convert({.container = Container::kGguf, .drop_predictors = true, .replace = true});
    const auto in = Open(in_), turned = Open(out_);
    EXPECT_EQ(Stored(*turned, "blk.0.attn_q.weight"), Stored(*in, "blk.0.attn_q.weight"));
    EXPECT_EQ(turned->FindTensor("blk.0.ffn_down.weight")->ggml_type,
              static_cast<uint32_t>(DType::kQ8_0));
    const std::vector<float> a = Decoded(*in, "blk.0.ffn_down_t.weight");
    const std::vector<float> b = Decoded(*turned, "blk.0.ffn_down.weight");
    for (size_t r = 0; r < 256; ++r) {
      for (size_t block = 0; block < 256; block += 32) {
        float top = 0;
        for (size_t c = block; c < block + 32; ++c) top = std::max(top, std::abs(a[c * 256 + r]));
        for (size_t c = block; c < block + 32; ++c) {
          ASSERT_NEAR(b[r * 256 + c], a[c * 256 + r], top * (0.5f / 127 + 0x1p-10f) + kTiny);
        }
      }
    }
    // Another type: every matrix, within a step of a block's largest.
    Convert({.type = DType::kQ4_0, .replace = true});
    const auto small = Open(out_);
    for (const auto& [name, tensor] : tiny.tensors) {
      if (tensor.shape.size() == 1) continue;
      ASSERT_EQ(small->FindTensor(name)->ggml_type, static_cast<uint32_t>(DType::kQ4_0)) << name;
      const std::vector<float> was = Decoded(*in, name), is = Decoded(*small, name);
      for (size_t block = 0; block < was.size(); block += 32) {
        float top = 0;
        for (size_t i = block; i < block + 32; ++i) top = std::max(top, std::abs(was[i]));
        for (size_t i = block; i < block + 32; ++i) {
          ASSERT_NEAR(is[i], was[i], top * (1.0f / 8 + 0x1p-9f) + kTiny) << name;
        }
      }
    }
  }
}

TEST_F(ConversionTest, RowsThatNoBlockDividesStayF16) {
  TinyModel tiny(/*is_powerinfer=*/true);
  for (const char* name : {"blk.0.fc1.weight", "blk.0.fc2.weight"}) {
    tiny.tensors[name].dtype = DType::kF32;
  }
  tiny.tensors["blk.0.fc1.weight"].shape[1] = 20;
  tiny.tensors["blk.0.fc2.weight"].shape[0] = 20;
  Write(tiny);
  const ConversionReport report = Convert({.type = DType::kQ8_0});
  EXPECT_THAT(report.notes, Contains(HasSubstr("no multiple of a block stay F16")));
  const auto out = Open(out_);
  EXPECT_EQ(out->FindTensor("blk.0.fc2.weight")->ggml_type, static_cast<uint32_t>(DType::kF16));
  EXPECT_EQ(out->FindTensor("blk.0.fc1.weight")->ggml_type, static_cast<uint32_t>(DType::kQ8_0));
}

TEST_F(ConversionTest, TensorsTheModelDoesNotUseAreKeptAsTheyAre) {
  TinyModel tiny(/*is_powerinfer=*/true);
  tiny.tensors["notes"] = {{7, 3}, static_cast<DType>(24)};  // I8
  tiny.contents["notes"] = "abcdefghijklmnopqrstu";
  tiny.tensors["blk.0.attn_rot_embd.weight"] = {{64, 2}, DType::kF16};
  Write(tiny);
  Convert({.type = DType::kQ8_0});
  const auto in = Open(in_), out = Open(out_);
  for (const char* name : {"notes", "blk.0.attn_rot_embd.weight"}) {
    EXPECT_EQ(Stored(*out, name), Stored(*in, name));
    EXPECT_EQ(out->FindTensor(name)->ggml_type, in->FindTensor(name)->ggml_type);
  }
}

TEST_F(ConversionTest, AReluModelStaysOneInEitherLayout) {
  for (const char* architecture : kArchitectures) {
    const bool relu_by_name = absl::StrContains("bamboo opt", architecture);
    Write(TinyModel(/*is_powerinfer=*/true, DType::kF16, architecture));
    const ConversionReport report =
        Convert({.container = Container::kGguf, .drop_predictors = true, .replace = true});
    const auto plain = ModelFile::Open(folder_.File(out_));
    ASSERT_TRUE(plain.ok()) << plain.status();
    EXPECT_EQ((*plain)->config().activation, Activation::kRelu) << architecture;
    // Only where the name would say otherwise.
    EXPECT_EQ((*plain)->gguf().Has(kActivationKey), !relu_by_name);
    EXPECT_EQ(testing::Value(report.notes, Contains(HasSubstr("other programs"))), !relu_by_name);
  }
  // The user can still say what it is.
  const auto silu = ModelFile::Open(folder_.File(out_), {.activation = Activation::kSilu});
  EXPECT_EQ(ExitCodeOf(silu.status()), ExitCode::kUsage);  // of the last one, opt
}

TEST_F(ConversionTest, ASiluModelBecomesAPowerInferFileOnlyOnTheUsersWord) {
  Write(TinyModel(/*is_powerinfer=*/false));
  ExpectRefused({.container = Container::kPowerInfer}, ExitCode::kUsage, "--relu");
  const ConversionReport report = Convert({.container = Container::kPowerInfer, .relu = true});
  EXPECT_THAT(report.notes, Contains(HasSubstr("PowerInfer refuses it")));
  EXPECT_FALSE(Open(out_)->Has(kActivationKey));
  // Without another layout it is noted in the file, once.
  Convert({.relu = true, .replace = true});
  EXPECT_EQ(*Open(out_)->GetString(kActivationKey), "relu");
  in_ = out_;
  out_ = "again.gguf";
  ExpectRefused({.relu = true}, ExitCode::kUsage, "nothing to change");
  Convert({.container = Container::kPowerInfer});  // known by now
}

TEST_F(ConversionTest, RefusesAnActivationKeyThatIsNoneOfTheArchitectures) {
  TinyModel tiny(/*is_powerinfer=*/false);
  for (const char* name : {"gelu", "", "swish"}) {
    tiny.keys[kActivationKey] = TinyModel::Text(name);
    Write(tiny);
    ExpectRefused({.type = DType::kQ8_0}, ExitCode::kBadData, kActivationKey);
  }
}

TEST_F(ConversionTest, RefusesWhatTheUserMustDecideAndLeavesNothing) {
  Write(TinyModel(/*is_powerinfer=*/true));
  ExpectRefused({}, ExitCode::kUsage, "nothing to change");
  ExpectRefused({.container = Container::kPowerInfer}, ExitCode::kUsage, "nothing to change");
  ExpectRefused({.type = DType::kF32}, ExitCode::kUsage, "wanted f16, bf16, q8_0 or q4_0");
  folder_.Write("out.gguf", "precious");
  ExpectRefused({.type = DType::kQ8_0}, ExitCode::kUsage, "--force");
  EXPECT_EQ(folder_.Content("out.gguf"), "precious");
  out_ = "in.gguf";
  ExpectRefused({.type = DType::kQ8_0, .replace = true}, ExitCode::kUsage, "the model itself");
  out_ = "sub";
  ASSERT_TRUE(std::filesystem::create_directory(folder_.File(out_)));
  ExpectRefused({.type = DType::kQ8_0, .replace = true}, ExitCode::kUsage, "is a folder");
  out_ = "missing/out.gguf";
  ExpectRefused({.type = DType::kQ8_0}, ExitCode::kShortage, "create the folder");
  in_ = "nowhere.gguf";
  out_ = "new.gguf";
  ExpectRefused({.type = DType::kQ8_0}, ExitCode::kBadData, "nowhere.gguf");
}

TEST_F(ConversionTest, ADamagedModelGivesNoOutput) {
  TinyModel damaged(/*is_powerinfer=*/true);
  const std::string name = "blk.1.ffn_up.weight";
  std::string bytes = TinyModel::Encoded(name, damaged.tensors.at(name));
  const uint16_t infinite = 0x7c00;
  std::memcpy(bytes.data() + 64 * 2 * 5, &infinite, 2);
  damaged.contents[name] = bytes;
  Write(damaged);
  ExpectRefused({.type = DType::kQ8_0}, ExitCode::kBadData, name + " row 5");
  // A weight that the other type cannot hold.
  TinyModel large(/*is_powerinfer=*/true, DType::kF32);
  bytes = TinyModel::Encoded(name, large.tensors.at(name));
  const float million = 1e6f;
  std::memcpy(bytes.data() + 64 * 4 * 9, &million, 4);
  large.contents[name] = bytes;
  Write(large);
  ExpectRefused({.type = DType::kF16}, ExitCode::kBadData, "row 9");
  // What only the check of the whole result finds.
  TinyModel ids(/*is_powerinfer=*/true);
  ids.keys["tokenizer.ggml.bos_token_id"] = TinyModel::Value<uint32_t>(4, 11);
  Write(ids);
  ExpectRefused({.type = DType::kQ8_0}, ExitCode::kBadData, "bos_token_id");
  folder_.Write("out.gguf", "precious");
  ExpectRefused({.type = DType::kQ8_0, .replace = true}, ExitCode::kBadData, "bos_token_id");
  EXPECT_EQ(folder_.Content("out.gguf"), "precious");
}

TEST_F(ConversionTest, TheProfileBesideTheModelComesAlong) {
  Write(TinyModel(/*is_powerinfer=*/true));
  EXPECT_FALSE(Convert({.type = DType::kQ8_0}).profile_copied);
  EXPECT_THAT(folder_.Names(), testing::UnorderedElementsAre("in.gguf", "out.gguf"));
  std::vector<float> frequency(96);
  for (size_t i = 0; i < 96; ++i) frequency[i] = static_cast<float>(i) / 96;
  ASSERT_TRUE(
      WriteActivationProfiles(folder_.File("in.profile.gguf"), {{"chat", {frequency, frequency}}})
          .ok());
  EXPECT_TRUE(Convert({.type = DType::kQ8_0, .replace = true}).profile_copied);
  const auto copied = ReadActivationProfiles(folder_.File("out.profile.gguf"));
  ASSERT_TRUE(copied.ok()) << copied.status();
  ASSERT_EQ(copied->size(), 1u);
  EXPECT_EQ((*copied)[0].name, "chat");
  EXPECT_EQ((*copied)[0].frequency[1], frequency);
  EXPECT_TRUE(Verify(folder_.File(out_)).ok());
}

TEST_F(ConversionTest, TellsOfEveryByteConvertedAndChecked) {
  Write(TinyModel(/*is_powerinfer=*/true));
  std::vector<std::string> stages;
  int64_t last = 0, of = 0;
  Convert(
      {.type = DType::kQ4_0, .progress = [&](absl::string_view stage, int64_t done, int64_t total) {
         if (stages.empty() || stages.back() != stage) {
           EXPECT_EQ(last, of);
           stages.emplace_back(stage);
           last = 0;
         }
         EXPECT_GE(done, last);
         last = done;
         of = total;
       }});
  EXPECT_THAT(stages, ElementsAre("converting", "checking"));
  EXPECT_EQ(last, of);
  EXPECT_GT(of, 0);
}

// Every neuron's row in its order, padding aside.
std::string NeuronBytes(const ModelFile& model) {
  const BundleLayout& layout = model.bundle_layout();
  std::string out;
  std::string bundle(static_cast<size_t>(layout.bundle_bytes), '\0');
  for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
    for (int64_t n = 0; n < layout.num_neurons; ++n) {
      EXPECT_TRUE(model
                      .PackBundles(layer, n, 1,
                                   std::as_writable_bytes(std::span(bundle.data(), bundle.size())))
                      .ok());
      out += bundle.substr(0, static_cast<size_t>(layout.rows * layout.row_bytes));
    }
  }
  return out;
}

TEST_F(ConversionTest, NeuronsGoToBundleOrderAndBackBitForBit) {
  for (const char* architecture : kArchitectures) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      SCOPED_TRACE(absl::StrCat(architecture, " ", Name(dtype)));
      const TinyModel tiny(/*is_powerinfer=*/true, dtype, architecture);
      in_ = "in.gguf", out_ = "arena.gguf";
      Write(tiny);
      const ConversionReport report = Convert({.arena = true, .replace = true});
      EXPECT_THAT(report.notes, Contains(HasSubstr("bundle order")));
      const auto before = ModelFile::Open(folder_.File(in_));
      const auto after = ModelFile::Open(folder_.File(out_));
      ASSERT_TRUE(before.ok() && after.ok()) << before.status() << after.status();
      ASSERT_NE((*after)->bundle_file(), nullptr);
      EXPECT_EQ(NeuronBytes(**after), NeuronBytes(**before));
      for (const GgufTensor& tensor : (*after)->gguf().tensors()) {
        if (absl::StrContains(tensor.name, "ffn_bundle")) continue;
        EXPECT_EQ(Stored((*after)->gguf(), tensor.name), Stored((*before)->gguf(), tensor.name));
      }
      in_ = "arena.gguf", out_ = "again.gguf";
      Convert({.replace = true});
      ExpectTensorsOf(tiny, out_, true);
      const auto again = Open(out_);
      EXPECT_FALSE(again->Has(kBundleRowsKey));
      EXPECT_EQ(again->alignment(), 32);
    }
  }
}

TEST_F(ConversionTest, BundleOrderTakesAnyLayoutAndType) {
  for (const char* architecture : kArchitectures) {
    SCOPED_TRACE(architecture);
    const TinyModel sparse(/*is_powerinfer=*/true, DType::kF16, architecture);
    Write(sparse, "sparse.gguf");
    Write(TinyModel(/*is_powerinfer=*/false, DType::kF16, architecture), "dense.gguf");
    // From a plain file, down matrices turned; then to one, turned back.
    in_ = "dense.gguf", out_ = "arena.gguf";
    Convert({.arena = true, .relu = true, .replace = true});
    in_ = "sparse.gguf", out_ = "wanted.gguf";
    Convert({.arena = true, .drop_predictors = true, .replace = true});
    for (const char* name : {"blk.0.ffn_bundle.weight", "blk.1.ffn_bundle.weight"}) {
      EXPECT_EQ(Stored(*Open("arena.gguf"), name), Stored(*Open("wanted.gguf"), name));
    }
    in_ = "arena.gguf", out_ = "dense_again.gguf";
    Convert({.container = Container::kGguf, .replace = true});
    ExpectTensorsOf(TinyModel(/*is_powerinfer=*/false, DType::kF16, architecture), out_, false);
    // In one go, or type first and order after.
    in_ = "sparse.gguf", out_ = "q8.gguf";
    Convert({.type = DType::kQ8_0, .replace = true});
    in_ = "q8.gguf", out_ = "two_steps.gguf";
    Convert({.arena = true, .replace = true});
    in_ = "sparse.gguf", out_ = "one_step.gguf";
    Convert({.arena = true, .type = DType::kQ8_0, .replace = true});
    in_ = "sparse.gguf", out_ = "arena_f16.gguf";
    Convert({.arena = true, .replace = true});
    in_ = "arena_f16.gguf", out_ = "arena_q8.gguf";
    Convert({.arena = true, .type = DType::kQ8_0, .replace = true});
    for (const char* name : {"blk.0.ffn_bundle.weight", "blk.1.ffn_bundle.weight"}) {
      const std::string wanted = Stored(*Open("two_steps.gguf"), name);
      EXPECT_EQ(Stored(*Open("one_step.gguf"), name), wanted);
      EXPECT_EQ(Stored(*Open("arena_q8.gguf"), name), wanted);
    }
  }
}

TEST_F(ConversionTest, BundleOrderRefusesWhatItCannotHold) {
  Write(TinyModel(/*is_powerinfer=*/true, DType::kF32));
  ExpectRefused({.arena = true}, ExitCode::kUsage, "the neurons are F32; in bundle order");
  TinyModel mixed(/*is_powerinfer=*/true);
  mixed.tensors["blk.1.ffn_up.weight"].dtype = DType::kQ8_0;
  Write(mixed);
  ExpectRefused({.arena = true}, ExitCode::kUsage, "the neurons are F16, Q8_0; in bundle order");
  Convert({.arena = true, .type = DType::kQ4_0});
  in_ = out_, out_ = "twice.gguf";
  ExpectRefused({.arena = true}, ExitCode::kUsage, "already is a bundle-ordered PowerInfer file");
  ExpectRefused({.container = Container::kGguf, .arena = true, .drop_predictors = true},
                ExitCode::kUsage, "leave --to gguf or --arena out");
  in_ = "silu.gguf";
  Write(TinyModel(/*is_powerinfer=*/false), in_);
  ExpectRefused({.arena = true}, ExitCode::kUsage, "computed with relu");
}

TEST_F(ConversionTest, NeitherThreadsNorPiecesChangeAByte) {
  TinyModel tiny(/*is_powerinfer=*/true, DType::kF32);
  tiny.tensors["notes"] = {{1000}, DType::kF32};
  const auto model = ModelFile::Open(Write(tiny));
  ASSERT_TRUE(model.ok());
  for (const bool arena : {false, true}) {
    std::set<std::string> contents;
    for (const int threads : {1, 2, 5}) {
      for (const int64_t piece_bytes : {1, 100, 3000, 1 << 20}) {
        ConversionOptions options{.container = Container::kGguf,
                                  .arena = arena,
                                  .type = DType::kQ8_0,
                                  .drop_predictors = true};
        if (arena) options.container.reset();
        const auto plan = PlanConversion(**model, options);
        ASSERT_TRUE(plan.ok()) << plan.status();
        auto writer = GgufWriter::Create(folder_.File("pieces.gguf"), false);
        ASSERT_TRUE(writer.ok());
        for (const ConvertedTensor& t : plan->tensors) {
          const uint32_t type = t.from == ConvertedTensor::From::kBytes
                                    ? t.source->ggml_type
                                    : static_cast<uint32_t>(t.dtype);
          (*writer)->DeclareEncoded(t.name, type, t.shape, t.bytes);
        }
        TensorConverter converter((*model)->gguf(), threads, piece_bytes);
        for (const ConvertedTensor& t : plan->tensors) {
          int64_t advanced = 0;
          const absl::Status status =
              converter.Write(t, **writer, [&](int64_t bytes) { advanced += bytes; });
          ASSERT_TRUE(status.ok()) << status;
          EXPECT_EQ(advanced, t.bytes) << t.name;
        }
        ASSERT_TRUE((*writer)->Finish().ok());
        contents.insert(folder_.Content("pieces.gguf"));
      }
    }
    EXPECT_EQ(contents.size(), 1u);
  }
}

TEST_F(ConversionTest, AConvertedModelIsWhatItWasToInspect) {
  Write(TinyModel(/*is_powerinfer=*/true, DType::kQ8_0, "opt"));
  Convert({.container = Container::kGguf, .drop_predictors = true});
  const auto in = Inspect(folder_.File(in_)), out = Inspect(folder_.File(out_));
  ASSERT_TRUE(in.ok() && out.ok()) << in.status() << out.status();
  EXPECT_TRUE(in->powerinfer);
  EXPECT_FALSE(out->powerinfer);
  EXPECT_TRUE(in->config.sparse);
  EXPECT_FALSE(out->config.sparse);
  EXPECT_EQ(out->ffn_bytes, in->ffn_bytes);
  EXPECT_EQ(out->config.context_length, in->config.context_length);
  EXPECT_EQ(out->config.activation, in->config.activation);
  EXPECT_NE(out->config.digest, in->config.digest);  // workers must not take one for the other
}

}  // namespace
}  // namespace isotherm
