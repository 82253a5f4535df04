#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/base/exit_code.h"
#include "common/base/file_identity.h"
#include "common/shm/file_mapping.h"
#include "cpu_worker/engine/arena.h"
#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

using ::testing::HasSubstr;

// The toy model's bundles in a file, layers in falling order and with gaps.
class ToyFile {
 public:
  explicit ToyFile(const std::string& folder) : path_(folder + "/mapped_arena_XXXXXX") {
    fd_.Reset(::mkstemp(path_.data()));
    source_ = ToySource();
    const auto geometry = shm::ArenaGeometry::Make(source_.shape).value();
    std::string bytes(static_cast<size_t>(4096 * 3 + 3 * geometry.layer_bytes() + 77), 'x');
    for (int64_t layer = 0; layer < 3; ++layer) {
      const int64_t offset = 4096 + (2 - layer) * (geometry.layer_bytes() + 64);
      layer_offsets_.push_back(offset);
      EXPECT_TRUE(source_
                      .pack(layer, 0, source_.shape.num_neurons,
                            reinterpret_cast<std::byte*>(bytes.data()) + offset)
                      .ok());
    }
    EXPECT_EQ(::write(fd_.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    source_.file = {.path = path_,
                    .fd = fd_.get(),
                    .identity = *IdentityOf(fd_.get()),
                    .layer_offsets = layer_offsets_};
  }
  ~ToyFile() { ::unlink(path_.c_str()); }

  const BundleSource& source() const { return source_; }
  BundleSource& source() { return source_; }
  int fd() const { return fd_.get(); }

 private:
  std::string path_;
  UniqueFd fd_;
  std::vector<int64_t> layer_offsets_;
  BundleSource source_;
};

void ExpectToyLayers(const Arena& arena) {
  const BundleSource source = ToySource();
  const shm::ArenaGeometry& geometry = arena.geometry();
  std::vector<std::byte> want(static_cast<size_t>(geometry.layer_bytes()));
  for (int64_t layer = 0; layer < geometry.shape.num_layers; ++layer) {
    ASSERT_TRUE(source.pack(layer, 0, geometry.shape.num_neurons, want.data()).ok());
    EXPECT_EQ(std::memcmp(want.data(), arena.layer(layer), want.size()), 0);
  }
  for (int64_t group = 0; group < arena.num_groups(); ++group) {
    EXPECT_TRUE(arena.CheckGroup(group).ok());
  }
}

TEST(MappedArenaTest, LayersAreTheFilesOwn) {
  const ToyFile file(testing::TempDir());
  for (const int threads : {1, 3}) {
    double last = 0;
    auto arena = Arena::Load(
        file.source(),
        {.kind = ArenaKind::kMap, .num_threads = threads, .progress = [&](double share) {
           EXPECT_GE(share, last);
           last = share;
           return true;
         }});
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(last, 1);
    EXPECT_TRUE((*arena)->is_model_file());
    EXPECT_EQ((*arena)->geometry().arena_bytes, file.source().file->identity.bytes);
    ExpectToyLayers(**arena);
    const auto fd = (*arena)->DuplicateFd();
    ASSERT_TRUE(fd.ok());
    EXPECT_EQ(*IdentityOf(fd->get()), file.source().file->identity);
  }
}

TEST(MappedArenaTest, AutoMapsWhatLiesInMemoryAndCopiesTheRest) {
  const ToyFile disk(testing::TempDir());
  auto arena = Arena::Load(disk.source(), {});
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ((*arena)->is_model_file(), shm::LiesInMemory(disk.fd()));
  ExpectToyLayers(**arena);
  const ToyFile memory("/dev/shm");
  ASSERT_TRUE(shm::LiesInMemory(memory.fd()));
  arena = Arena::Load(memory.source(), {});
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_TRUE((*arena)->is_model_file());
  ExpectToyLayers(**arena);
  // Its pages are there: no more memory is needed.
  EXPECT_TRUE(Arena::Load(memory.source(), {.limits = {.available = 1}}).ok());
  arena = Arena::Load(memory.source(), {.kind = ArenaKind::kCopy});
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_FALSE((*arena)->is_model_file());
  ExpectToyLayers(**arena);
}

TEST(MappedArenaTest, MappingWhatIsNoFileIsTheUsersFault) {
  const absl::Status status = Arena::Load(ToySource(), {.kind = ArenaKind::kMap}).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
  EXPECT_THAT(std::string(status.message()), HasSubstr("convert --arena"));
}

// A file in memory needs no more of it, wherever the temporary folder lies.
TEST(MappedArenaTest, ADiskFileThatDoesNotFitMemoryIsAShortage) {
  const ToyFile file(testing::TempDir());
  const auto arena =
      Arena::Load(file.source(), {.kind = ArenaKind::kMap, .limits = {.available = 1000}});
  if (shm::LiesInMemory(file.fd())) {
    EXPECT_TRUE(arena.ok()) << arena.status();
  } else {
    EXPECT_EQ(ExitCodeOf(arena.status()), ExitCode::kShortage) << arena.status();
  }
}

TEST(MappedArenaTest, LoadingCanBeStopped) {
  const ToyFile file(testing::TempDir());
  const auto arena = Arena::Load(
      file.source(), {.kind = ArenaKind::kMap, .progress = [](double) { return false; }});
  EXPECT_TRUE(absl::IsCancelled(arena.status()));
}

TEST(MappedArenaTest, AChangedFileIsFound) {
  const ToyFile file(testing::TempDir());
  auto arena = Arena::Load(file.source(), {.kind = ArenaKind::kMap});
  ASSERT_TRUE(arena.ok()) << arena.status();
  const int64_t bytes = file.source().file->identity.bytes;
  ASSERT_EQ(::ftruncate(file.fd(), bytes + 1), 0);
  EXPECT_TRUE(absl::IsDataLoss((*arena)->CheckGroup(1)));
  // Nobody may attach to it, and it is not loaded again.
  EXPECT_TRUE(absl::IsFailedPrecondition((*arena)->DuplicateFd().status()));
  const auto again = Arena::Load(file.source(), {.kind = ArenaKind::kMap});
  EXPECT_EQ(ExitCodeOf(again.status()), ExitCode::kBadData) << again.status();
}

TEST(MappedArenaTest, OffsetsOutsideTheFileAreRefused) {
  ToyFile file(testing::TempDir());
  file.source().file->layer_offsets[1] = file.source().file->identity.bytes - 64;
  EXPECT_TRUE(
      absl::IsInvalidArgument(Arena::Load(file.source(), {.kind = ArenaKind::kMap}).status()));
}

}  // namespace
}  // namespace isotherm::cpu
