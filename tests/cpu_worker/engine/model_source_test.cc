#include "cpu_worker/engine/model_source.h"

#include <gtest/gtest.h>

#include "cpu_worker/engine/arena.h"
#include "tests/cpu_worker/toy_model.h"
#include "tests/reference/integer_model.h"

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
    const BundleSource source = SourceOf(*std::move(file));
    auto arena = Arena::Load(source, {.num_threads = 2});
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ((*arena)->geometry().bundle_bytes, layout.bundle_bytes);
    EXPECT_EQ((*arena)->geometry().row_bytes, layout.row_bytes);
    EXPECT_EQ(shm::LayoutHash(source.shape), layout.Hash());
    EXPECT_TRUE((*arena)->CheckGroup(0).ok());
  }
}

}  // namespace
}  // namespace isotherm::cpu
