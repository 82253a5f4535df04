#include "models/bundle_file.h"

#include <cstring>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/bundle_layout.h"
#include "models/inspect/inspect.h"
#include "models/model_file.h"
#include "tests/models/temp_folder.h"
#include "tests/models/tiny_model.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;

// TinyModel with its neurons in bundle order, of arbitrary numbers.
TinyModel Bundled(DType dtype = DType::kF16, const std::string& architecture = "llama") {
  TinyModel tiny(/*is_powerinfer=*/true, dtype, architecture);
  const int rows = architecture == "llama" || architecture == "bamboo" ? 3 : 2;
  for (int64_t layer = 0; layer < TinyModel::kLayers; ++layer) {
    const std::string prefix = absl::StrCat("blk.", layer, ".");
    for (const char* stem : {"ffn_gate", "ffn_up", "ffn_down_t"}) {
      tiny.tensors.erase(prefix + stem + ".weight");
    }
    tiny.tensors[prefix + "ffn_bundle.weight"] = {
        {BundleColumns(dtype, rows, TinyModel::kDim), TinyModel::kFfn}, dtype};
  }
  tiny.alignment = 4096;
  tiny.keys["general.alignment"] = TinyModel::Value<uint32_t>(4, 4096);
  tiny.keys["isotherm.bundle_rows"] = TinyModel::Value<uint32_t>(4, static_cast<uint32_t>(rows));
  return tiny;
}

class BundleFileTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ModelFile>> Open(const TinyModel& tiny) {
    return ModelFile::Open(folder_.Write("m.gguf", tiny.Bytes()));
  }
  void ExpectRefused(const TinyModel& tiny, const std::string& naming) {
    const absl::Status status = Open(tiny).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
  }

  TempFolder folder_;
};

TEST_F(BundleFileTest, RowsArePaddedWithWholeBlocksToCacheLines) {
  EXPECT_EQ(BundleColumns(DType::kF16, 3, 4096), 3 * 4096);
  EXPECT_EQ(BundleColumns(DType::kQ8_0, 3, 5120), 3 * 5120);
  EXPECT_EQ(BundleColumns(DType::kQ4_0, 2, 8192), 2 * 8192);
  EXPECT_EQ(BundleColumns(DType::kF16, 3, 72), 224);     // 216 of 2 bytes: to 448 bytes
  EXPECT_EQ(BundleColumns(DType::kQ8_0, 3, 576), 2048);  // 54 blocks of 34 bytes: to 64
  EXPECT_EQ(BundleColumns(DType::kQ4_0, 3, 576), 2048);  // 54 of 18 bytes: to 64
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    for (const int rows : {2, 3}) {
      for (int64_t dim = 32; dim <= 1024; dim += 32) {
        const int64_t columns = BundleColumns(dtype, rows, dim);
        EXPECT_EQ(*RowBytes(dtype, columns) % 64, 0);
        EXPECT_GE(columns, rows * dim);
        EXPECT_LT(*RowBytes(dtype, columns), *RowBytes(dtype, rows * dim) + 64 * 18);
      }
    }
  }
}

TEST_F(BundleFileTest, BundlesAreTheTensorsRows) {
  for (const char* architecture : {"llama", "bamboo", "falcon", "opt"}) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      SCOPED_TRACE(absl::StrCat(architecture, " ", Name(dtype)));
      const TinyModel tiny = Bundled(dtype, architecture);
      const auto model = Open(tiny);
      ASSERT_TRUE(model.ok()) << model.status();
      EXPECT_EQ((*model)->repacked(), "");
      const BundleLayout& layout = (*model)->bundle_layout();
      EXPECT_EQ(layout.dtype, dtype);
      EXPECT_EQ(layout.rows, (*model)->config().bundle_rows());
      EXPECT_EQ(layout.row_bytes, *RowBytes(dtype, TinyModel::kDim));
      const BundleFile* bundles = (*model)->bundle_file();
      ASSERT_NE(bundles, nullptr);
      EXPECT_EQ(layout.bundle_bytes, bundles->bundle_bytes);
      for (int64_t layer = 0; layer < TinyModel::kLayers; ++layer) {
        const std::string name = ModelFile::LayerTensor(layer, "ffn_bundle");
        EXPECT_EQ(bundles->layer_offsets[static_cast<size_t>(layer)] % 4096, 0);
        EXPECT_EQ(bundles->layer_offsets[static_cast<size_t>(layer)],
                  (*model)->gguf().FindTensor(name)->offset);
        const std::string wanted = TinyModel::Encoded(name, tiny.tensors.at(name));
        for (const auto& [first, count] : {std::pair{0, 96}, {5, 1}, {90, 6}}) {
          std::string got(static_cast<size_t>(count * layout.bundle_bytes), '\0');
          ASSERT_TRUE((*model)
                          ->PackBundles(layer, first, count,
                                        std::as_writable_bytes(std::span(got.data(), got.size())))
                          .ok());
          EXPECT_EQ(got,
                    wanted.substr(static_cast<size_t>(first * layout.bundle_bytes), got.size()));
        }
      }
    }
  }
}

TEST_F(BundleFileTest, OtherFilesHaveNoBundles) {
  const auto model = Open(TinyModel(/*is_powerinfer=*/true));
  ASSERT_TRUE(model.ok());
  EXPECT_EQ((*model)->bundle_file(), nullptr);
}

TEST_F(BundleFileTest, WhatIsWrongIsNamed) {
  TinyModel tiny = Bundled();
  tiny.keys.erase("isotherm.bundle_rows");
  ExpectRefused(tiny, "key isotherm.bundle_rows is missing");

  tiny = Bundled();
  tiny.keys["isotherm.bundle_rows"] = TinyModel::Value<uint32_t>(4, 2);
  ExpectRefused(tiny, "isotherm.bundle_rows is 2; a neuron of llama has 3 rows");

  tiny = Bundled();
  tiny.keys["isotherm.bundle_rows"] = TinyModel::Text("three");
  ExpectRefused(tiny, "isotherm.bundle_rows has the wrong type");

  tiny = Bundled();
  tiny.alignment = 32;
  tiny.keys.erase("general.alignment");
  ExpectRefused(tiny, "general.alignment is absent, so 32");
  tiny.alignment = 64;
  tiny.keys["general.alignment"] = TinyModel::Value<uint32_t>(4, 64);
  ExpectRefused(tiny, "general.alignment is 64");

  tiny = Bundled();
  tiny.tensors.erase("blk.1.ffn_bundle.weight");
  ExpectRefused(tiny, "tensor blk.1.ffn_bundle.weight is missing");

  tiny = Bundled();
  tiny.tensors["blk.1.ffn_bundle.weight"].shape[0] += 32;
  ExpectRefused(tiny, "tensor blk.1.ffn_bundle.weight is [224, 96, 1, 1]; [192, 96] is wanted");
  tiny = Bundled(DType::kQ8_0);
  tiny.tensors["blk.0.ffn_bundle.weight"].shape[0] = 192;  // without its padding
  ExpectRefused(tiny, "[1024, 96] is wanted");
  tiny = Bundled();
  tiny.tensors["blk.0.ffn_bundle.weight"].shape[1] = 95;
  ExpectRefused(tiny, "[192, 96] is wanted");

  tiny = Bundled();
  tiny.tensors["blk.1.ffn_bundle.weight"].dtype = DType::kBF16;
  ExpectRefused(tiny, "is BF16, layer 0 F16; all layers' bundles are of one type");

  for (const DType dtype : {DType::kF32, DType::kQ4_1}) {
    tiny = Bundled();
    for (const char* name : {"blk.0.ffn_bundle.weight", "blk.1.ffn_bundle.weight"}) {
      tiny.tensors[name].dtype = dtype;
    }
    ExpectRefused(tiny, "bundles are F16, BF16, Q8_0 or Q4_0");
  }

  for (const char* stem : {"ffn_gate", "ffn_up", "ffn_down_t"}) {
    tiny = Bundled();
    tiny.tensors[absl::StrCat("blk.1.", stem, ".weight")] = {{64, 96}, DType::kF16};
    ExpectRefused(tiny, "both hold the layer's neurons");
  }

  tiny = Bundled();
  tiny.powerinfer = false;
  ExpectRefused(tiny, "has the magic PWRI, this file GGUF");

  tiny = Bundled(DType::kF16, "opt");
  tiny.tensors.erase("blk.0.ffn_up.bias");
  ExpectRefused(tiny, "blk.0.ffn_up.bias is missing");
}

TEST_F(BundleFileTest, InspectAndVerifyKnowIt) {
  TinyModel tiny = Bundled(DType::kQ8_0);
  const std::string name = "blk.1.ffn_bundle.weight";
  const int64_t columns = tiny.tensors.at(name).shape[0];
  const int64_t bundle_bytes = *RowBytes(DType::kQ8_0, columns);
  ASSERT_EQ(columns, 1024);  // 6 blocks of 34 bytes and 26 of padding
  for (const char* tensor : {"blk.0.ffn_bundle.weight", "blk.1.ffn_bundle.weight"}) {
    std::string bytes = TinyModel::Encoded(tensor, tiny.tensors.at(tensor));
    for (int64_t n = 0; n < TinyModel::kFfn; ++n) {
      std::memset(bytes.data() + n * bundle_bytes + 6 * 34, 0,
                  static_cast<size_t>(bundle_bytes - 6 * 34));
    }
    tiny.contents[tensor] = bytes;
  }
  const std::string path = folder_.Write("m.gguf", tiny.Bytes());
  EXPECT_TRUE(Verify(path).ok()) << Verify(path);
  const auto summary = Inspect(path);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_TRUE(summary->bundle_ordered);
  EXPECT_EQ(summary->ffn_bytes, 2 * 96 * bundle_bytes);
  EXPECT_THAT(ToText(*summary), HasSubstr("in bundle order"));
  EXPECT_THAT(ToJson(*summary), HasSubstr("\"bundle_ordered\": true"));
  // Padding is no parameter, and neurons are no dense bytes.
  const auto plain =
      Inspect(folder_.Write("plain.gguf", TinyModel(/*is_powerinfer=*/true, DType::kQ8_0).Bytes()));
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->bundle_ordered);
  EXPECT_EQ(summary->parameters, plain->parameters);
  EXPECT_EQ(summary->dense_bytes, plain->dense_bytes);

  tiny.contents[name][static_cast<size_t>(3 * bundle_bytes + 6 * 34 + 5)] = 1;
  const absl::Status padding = Verify(folder_.Write("m.gguf", tiny.Bytes()));
  EXPECT_EQ(ExitCodeOf(padding), ExitCode::kBadData);
  EXPECT_THAT(std::string(padding.message()), HasSubstr("ffn_bundle.weight row 3"));
  tiny.contents[name][static_cast<size_t>(3 * bundle_bytes + 6 * 34 + 5)] = 0;
  const uint16_t infinite = 0x7c00;
  std::memcpy(tiny.contents[name].data() + 7 * bundle_bytes, &infinite, 2);
  const absl::Status scale = Verify(folder_.Write("m.gguf", tiny.Bytes()));
  EXPECT_THAT(std::string(scale.message()), HasSubstr("ffn_bundle.weight row 7"));
}

}  // namespace
}  // namespace isotherm
