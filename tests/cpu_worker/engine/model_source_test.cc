#include "cpu_worker/engine/model_source.h"

#include <gtest/gtest.h>

#include "cpu_worker/engine/arena.h"
#include "tests/cpu_worker/toy_model.h"
#include "tests/reference/integer_model.h"
#include "tests/reference/random_model.h"

namespace isotherm::cpu {
namespace {

TEST(ModelSourceTest, TheArenasLayoutIsTheModelFilesInEveryWeightType) {
  const reference::IntegerModel model(reference::IntegerModelOptions{});
  const TemporaryDirectory directory;
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    const std::string path = directory.path() + "/model.gguf";
    ASSERT_TRUE(model.Write(path, dtype).ok());
    auto file = ModelFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    const BundleLayout layout = (*file)->bundle_layout();
    const auto opened = SourceOf(*std::move(file));
    ASSERT_TRUE(opened.ok()) << opened.status();
    const BundleSource& source = *opened;
    auto arena = Arena::Load(source, {.num_threads = 2});
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ((*arena)->geometry().bundle_bytes, layout.bundle_bytes);
    EXPECT_EQ((*arena)->geometry().row_bytes, layout.row_bytes);
    EXPECT_EQ(shm::LayoutHash(source.shape), layout.Hash());
    EXPECT_TRUE((*arena)->CheckGroup(0).ok());
  }
}

TEST(ModelSourceTest, TheRuleOfANeuronIsTheModels) {
  const TemporaryDirectory directory;
  const auto open = [&](const reference::RandomModelOptions& options) {
    const std::string path = directory.path() + "/random.gguf";
    EXPECT_TRUE(reference::WriteRandomModel(path, options).ok());
    auto file = ModelFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    std::shared_ptr<const ModelFile> model = *std::move(file);
    const auto source = SourceOf(model);
    EXPECT_TRUE(source.ok()) << source.status();
    return std::pair(model, *source);
  };
  const auto [opt_model, opt] = open({.architecture = "opt", .num_kv_heads = 4});
  EXPECT_EQ(opt.shape.rows, 2);
  ASSERT_EQ(opt.rule.up_bias.size(), 3u);
  for (int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(opt.rule.up_bias[static_cast<size_t>(layer)],
              *opt_model->ReadVector(ModelFile::LayerBias(layer, "ffn_up")));
  }
  EXPECT_TRUE(open({.architecture = "bamboo"}).second.rule.activate_up);
  const BundleSource falcon = open({.architecture = "falcon", .sparse = false}).second;
  EXPECT_EQ(falcon.rule.activation, Activation::kGelu);
  EXPECT_EQ(falcon.shape.rows, 2);
  EXPECT_TRUE(falcon.rule.up_bias.empty());
}

}  // namespace
}  // namespace isotherm::cpu
