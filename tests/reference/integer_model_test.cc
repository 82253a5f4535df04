#include "tests/reference/integer_model.h"

#include <set>

#include "gtest/gtest.h"
#include "models/model_file.h"
#include "models/quantize/block_codec.h"

namespace isotherm::reference {
namespace {

TEST(IntegerModelTest, SameSeedSameModelAndVariedText) {
  const IntegerModel model({.seed = 3}), again({.seed = 3});
  for (const std::vector<int32_t>& prompt : model.Prompts(5, 3)) {
    const std::vector<int32_t> golden = model.Golden(prompt, 60);
    EXPECT_EQ(golden, again.Golden(prompt, 60));
    EXPECT_GT(std::set<int32_t>(golden.begin(), golden.end()).size(), 30u);
  }
}

TEST(IntegerModelTest, EveryWeightTypeHoldsTheSameNumbers) {
  const IntegerModel model({.seed = 2});
  std::vector<std::vector<float>> first;
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    const std::string path = testing::TempDir() + "/integer.gguf";
    ASSERT_TRUE(model.Write(path, dtype).ok());
    const auto file = ModelFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->config().sparse);
    EXPECT_EQ((*file)->bundle_layout().dtype, dtype);
    std::vector<std::vector<float>> rows;
    for (const char* stem : {"attn_q", "attn_output", "ffn_gate", "ffn_down_t", "fc2"}) {
      const auto matrix = (*file)->ReadMatrix(ModelFile::LayerTensor(1, stem));
      ASSERT_TRUE(matrix.ok());
      for (int64_t r = 0; r < matrix->rows; ++r) {
        std::vector<float> row(static_cast<size_t>(matrix->columns));
        ASSERT_TRUE(DecodeRow(dtype, matrix->data() + r * matrix->row_bytes, row).ok());
        rows.push_back(std::move(row));
      }
    }
    if (first.empty()) first = rows;
    EXPECT_EQ(rows, first) << Name(dtype);
  }
}

}  // namespace
}  // namespace isotherm::reference
