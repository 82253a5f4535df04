#include "models/profile/gpu_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/exit_code.h"
#include "tests/models/gguf/gguf_bytes.h"
#include "tests/models/temp_folder.h"

namespace isotherm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two layers of three neurons as PowerInfer's exporter writes them; each part may be spoilt.
struct Split {
  const char* magic = "PWRI";
  std::string architecture = "generic.gpu_index";
  uint32_t layers = 2;
  std::vector<int32_t> idx0 = {1, 0, 1}, bucket0 = {0, 2}, idx1 = {0, 0, 0}, bucket1 = {};
  uint32_t type = 18;
  std::string name1 = "blk.1.gpu_idx";

  std::string bytes() const {
    GgufBytes out;
    const auto at = [](size_t i) { return static_cast<uint64_t>(32 * i); };
    out.Header(4, 3, 3, magic)
        .Str("general.architecture", architecture)
        .U32("generic.gpu_index.block_count", layers)
        .Text("split.vram_capacity")
        .Put<uint32_t>(10)
        .Put<uint64_t>(4'096);
    // Not in layer order: pairs are read by name.
    out.Tensor(name1, {idx1.size()}, type, at(0));
    out.Tensor("blk.1.gpu_bucket", {bucket1.size()}, type, at(1));
    // An empty one takes no bytes: the next begins where it does.
    const size_t next = bucket1.empty() ? 1 : 2;
    out.Tensor("blk.0.gpu_idx", {idx0.size()}, type, at(next));
    out.Tensor("blk.0.gpu_bucket", {bucket0.size()}, type, at(next + 1));
    out.Pad();
    for (const std::vector<int32_t>* ints : {&idx1, &bucket1, &idx0, &bucket0}) {
      if (ints->empty()) continue;
      for (const int32_t value : *ints) out.Put<int32_t>(value);
      out.Pad();
    }
    return out.bytes();
  }
};

absl::StatusOr<GpuIndex> Read(const Split& split) {
  return ReadGpuIndex(MemoryFile(split.bytes()).path());
}

TEST(GpuIndexTest, ReadsPairsByName) {
  const auto index = Read(Split());
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->vram_capacity, 4'096);
  EXPECT_EQ(index->num_neurons, 3);
  ASSERT_EQ(index->hot.size(), 2u);
  EXPECT_THAT(index->hot[0], ElementsAre(0b101));
  EXPECT_THAT(index->hot[1], ElementsAre(0));
}

TEST(GpuIndexTest, ComesBackAsItWasWritten) {
  const TempFolder folder;
  GpuIndex index{.vram_capacity = 77, .num_neurons = 130};
  index.hot = {{0, 0, 0}, {~uint64_t{0}, 1, 0b11}, {5, 0, 0}, {0, 0, 0}};
  const std::string path = folder.File("m.generated.gpuidx");
  ASSERT_TRUE(WriteGpuIndex(path, index).ok());
  EXPECT_TRUE(IsGpuIndex(path));
  const auto read = ReadGpuIndex(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->vram_capacity, 77);
  EXPECT_EQ(read->num_neurons, 130);
  EXPECT_EQ(read->hot, index.hot);
  EXPECT_EQ(folder.Content("m.generated.gpuidx").substr(0, 4), "PWRI");
}

TEST(GpuIndexTest, RefusesWhatContradictsItself) {
  const auto refuses = [](const Split& split, const std::string& why) {
    const auto index = Read(split);
    EXPECT_EQ(ExitCodeOf(index.status()), ExitCode::kBadData) << why;
    EXPECT_THAT(std::string(index.status().message()), HasSubstr(why));
  };
  Split split;
  split.magic = "GGUF";
  split.type = 26;
  split.idx1 = {1, 0, 0};  // empty tensors are PowerInfer's alone
  split.bucket1 = {0};
  refuses(split, "not a GPU split");
  split = Split();
  split.architecture = "llama";
  split.type = 0;
  refuses(split, "");
  split = Split();
  split.layers = 3;
  refuses(split, "4 tensors");
  split = Split();
  split.layers = 0;
  refuses(split, "block_count");
  split = Split();
  split.idx0[1] = 2;
  refuses(split, "0 or 1");
  split = Split();
  split.bucket0 = {0};
  refuses(split, "1 ids");
  split = Split();
  split.bucket0 = {2, 0};
  refuses(split, "ascending");
  split = Split();
  split.bucket0 = {0, 1};
  refuses(split, "marks");
  split = Split();
  split.bucket0 = {0, 7};
  refuses(split, "id 7");
  split = Split();
  split.bucket0 = {-1, 2};
  refuses(split, "id -1");
  split = Split();
  split.idx1 = {0, 0};
  refuses(split, "2 neurons");
  split = Split();
  split.name1 = "blk.2.gpu_idx";
  refuses(split, "blk.1.gpu_idx");
  split = Split();
  split.type = 1;  // F16
  refuses(split, "I32");
}

TEST(GpuIndexTest, OtherFilesAreNone) {
  const TempFolder folder;
  EXPECT_FALSE(IsGpuIndex(folder.File("missing")));
  EXPECT_FALSE(IsGpuIndex(folder.Write("text", "no file of ours")));
}

}  // namespace
}  // namespace isotherm
