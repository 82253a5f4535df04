#include "common/shm/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "common/base/exit_code.h"
#include "common/shm/arena_layout.h"
#include "common/shm/process_identity.h"
#include "tests/common/shm/slot_pair.h"

namespace isotherm::shm {
namespace {

TEST(SealedMemoryTest, CannotChangeItsSizeAndIsWritableAndShared) {
  auto fd = CreateSealedMemory("test", 8192, MemoryLimits{});
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_NE(::ftruncate(fd->get(), 0), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::ftruncate(fd->get(), 16384), 0);
  EXPECT_NE(::fcntl(fd->get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  auto a = MapShared(fd->get(), 8192, Access::kReadWrite);
  auto b = MapShared(fd->get(), 8192, Access::kReadOnly);
  ASSERT_TRUE(a.ok() && b.ok());
  a->data()[8191] = std::byte{7};
  EXPECT_EQ(b->data()[8191], std::byte{7});
}

TEST(SealedMemoryTest, FaultsJustOutsideTheMapping) {
  auto fd = CreateSealedMemory("test", 4096, MemoryLimits{});
  auto mapping = MapShared(fd->get(), 4096, Access::kReadWrite);
  ASSERT_TRUE(mapping.ok());
  EXPECT_DEATH(mapping->data()[4096] = std::byte{1}, "");
  EXPECT_DEATH(mapping->data()[-1] = std::byte{1}, "");
}

TEST(SealedMemoryTest, LargeMappingsStartOnHugePages) {
  auto fd = CreateSealedMemory("test", 3 << 20, MemoryLimits{});
  auto mapping = MapShared(fd->get(), 3 << 20, Access::kReadOnly);
  ASSERT_TRUE(mapping.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(mapping->data()) % (2 << 20), 0u);
}

TEST(SealedMemoryTest, RefusesUnsealedShortAndForeignDescriptors) {
  UniqueFd unsealed(::memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), 4096), 0);
  EXPECT_TRUE(
      absl::IsFailedPrecondition(MapShared(unsealed.get(), 4096, Access::kReadOnly).status()));
  ASSERT_EQ(::fcntl(unsealed.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);  // could still grow
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckSealedMemory(unsealed.get(), 4096)));
  auto sealed = CreateSealedMemory("test", 4096, MemoryLimits{});
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckSealedMemory(sealed->get(), 8192)));
  UniqueFd null(::open("/dev/null", O_RDWR));
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckSealedMemory(null.get(), 4096)));
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckSealedMemory(-1, 4096)));
}

TEST(MemoryLimitsTest, ShortageNamesBothNumbersAndTheExitCode) {
  for (const MemoryLimits& limits :
       {MemoryLimits{.available = 1000}, MemoryLimits{.cgroup_free = 1000},
        MemoryLimits{.file_size = 1000}}) {
    const absl::Status status = CreateSealedMemory("the arena", 1001, limits).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kShortage);
    EXPECT_NE(status.message().find("1001"), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find("1000"), absl::string_view::npos) << status;
    EXPECT_TRUE(CreateSealedMemory("the arena", 1000, limits).ok());
  }
}

TEST(MemoryLimitsTest, AFileSizeLimitIsAnErrorAndNoSignal) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const absl::Status status = CreateSealedMemory("x", 2 << 20, ReadMemoryLimits()).status();
    ::_exit(static_cast<int>(ExitCodeOf(status)));
  }
  int outcome = 0;
  ASSERT_EQ(::waitpid(child, &outcome, 0), child);
  ASSERT_TRUE(WIFEXITED(outcome));
  EXPECT_EQ(WEXITSTATUS(outcome), static_cast<int>(ExitCode::kShortage));
}

class FakeHostTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "limits-XXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  MemoryLimits Read() { return ReadMemoryLimits(root_ + "/proc", root_ + "/cgroup"); }
  std::string root_;
};

TEST_F(FakeHostTest, TheTightestCgroupAboveUsCounts) {
  Write("/proc/meminfo", "MemTotal: 900 kB\nMemAvailable:   500 kB\n");
  Write("/proc/self/cgroup", "0::/a/b\n");
  Write("/cgroup/a/b/memory.max", "max\n");
  Write("/cgroup/a/memory.max", "300000\n");
  Write("/cgroup/a/memory.current", "100000\n");
  Write("/cgroup/a/memory.stat", "anon 1\ninactive_file 40000\n");
  const MemoryLimits limits = Read();
  EXPECT_EQ(limits.available, 500 * 1024);
  EXPECT_EQ(limits.cgroup_free, 240'000);
}

TEST_F(FakeHostTest, ReadsVersionOneLimits) {
  Write("/proc/self/cgroup", "3:cpu:/x\n7:memory:/a\n");
  Write("/cgroup/memory/a/memory.limit_in_bytes", "5000\n");
  Write("/cgroup/memory/a/memory.usage_in_bytes", "6000\n");
  EXPECT_EQ(Read().cgroup_free, 0);
}

TEST_F(FakeHostTest, WhatCannotBeReadIsNoLimit) {
  const MemoryLimits limits = Read();
  EXPECT_EQ(limits.available, kNoLimit);
  EXPECT_EQ(limits.cgroup_free, kNoLimit);
}

TEST(ControlRegionTest, RefusesEveryHeaderThatIsNotTheHandshakes) {
  RegionPair pair;
  const ControlRegion::Expected right = ExpectedOf(*pair.cpu);
  const auto attach = [&](const ControlRegion::Expected& expected) {
    return ControlRegion::Attach(UniqueFd(::dup(pair.cpu->fd())), expected).status();
  };
  EXPECT_TRUE(attach(right).ok());
  const std::function<void(ControlRegion::Expected&)> changes[] = {
      [](auto& e) { e.region_bytes += 4096; }, [](auto& e) { e.region_bytes = 0; },
      [](auto& e) { e.nonce.high ^= 1; },      [](auto& e) { e.nonce.low ^= 1; },
      [](auto& e) { e.layout_hash ^= 1; },     [](auto& e) { ++e.model_dim; },
      [](auto& e) { ++e.num_neurons; },        [](auto& e) { ++e.num_layers; },
      [](auto& e) { e.creator = {1, 1}; },
  };
  for (const auto& change : changes) {
    ControlRegion::Expected wrong = right;
    change(wrong);
    EXPECT_TRUE(absl::IsFailedPrecondition(attach(wrong))) << attach(wrong);
  }
  ControlRegion::Expected with_creator = right;
  with_creator.creator = OwnIdentity();
  EXPECT_TRUE(attach(with_creator).ok());
}

TEST(ControlRegionTest, RefusesEveryFlippedBitOfTheHeaderThatItReads) {
  RegionPair pair;
  auto mapping = MapShared(pair.cpu->fd(), pair.cpu->bytes(), Access::kReadWrite);
  ASSERT_TRUE(mapping.ok());
  int accepted = 0;
  for (size_t bit = 0; bit < 8 * sizeof(ControlHeader); ++bit) {
    mapping->data()[bit / 8] ^= std::byte(1 << bit % 8);
    accepted += ControlRegion::Attach(UniqueFd(::dup(pair.cpu->fd())), ExpectedOf(*pair.cpu)).ok();
    mapping->data()[bit / 8] ^= std::byte(1 << bit % 8);
  }
  // first_sequence and the creator (not known here) may be anything; the reserved word too; and a
  // region of whole pages may hold a few shapes.
  EXPECT_LE(accepted, 64 + 128 + 32 + 32);
  EXPECT_GE(accepted, 64 + 128 + 32);
}

TEST(ControlGeometryTest, RefusesShapesOutOfBounds) {
  const std::function<void(ControlShape&)> changes[] = {
      [](auto& s) { s.max_rows = 0; },    [](auto& s) { s.max_rows = 4097; },
      [](auto& s) { s.model_dim = -1; },  [](auto& s) { s.num_neurons = 0; },
      [](auto& s) { s.num_layers = 0; },  [](auto& s) { s.num_slots = 3; },
      [](auto& s) { s.num_slots = 1; },   [](auto& s) { s.num_neurons = 1 << 25; },
      [](auto& s) { s.num_slots = 128; },
  };
  for (const auto& change : changes) {
    ControlShape shape = kTestShape;
    change(shape);
    EXPECT_TRUE(absl::IsInvalidArgument(ControlGeometry::Make(shape).status()));
  }
}

TEST(ArenaLayoutTest, LayersStartOnPagesAndBundlesOnCacheLines) {
  const ArenaShape shape{DType::kQ8_0, 3, 576, 1536, 30};
  auto geometry = ArenaGeometry::Make(shape);
  ASSERT_TRUE(geometry.ok()) << geometry.status();
  EXPECT_EQ(geometry->row_bytes, 612);
  EXPECT_EQ(geometry->bundle_bytes, 1856);
  EXPECT_EQ(geometry->LayerOffset(1) % 4096, 0);
  EXPECT_GE(geometry->LayerOffset(1), geometry->LayerOffset(0) + geometry->layer_bytes());
  EXPECT_EQ(geometry->arena_bytes, geometry->LayerOffset(30));
}

TEST(ArenaLayoutTest, InAModelFileLayersLieWhereItsTensorsDo) {
  ArenaShape shape{DType::kQ8_0, 3, 576, 1536, 2};
  shape.bundle_bytes = 2176;  // 54 blocks of 34 bytes, and 10 of padding
  const int64_t layer = 1536 * 2176;
  const int64_t file = 4096 + 2 * layer + 100;
  auto geometry = ArenaGeometry::MakeInFile(shape, {4096 + layer, 4096}, file);
  ASSERT_TRUE(geometry.ok()) << geometry.status();
  EXPECT_EQ(geometry->bundle_bytes, 2176);
  EXPECT_EQ(geometry->row_bytes, 612);
  EXPECT_EQ(geometry->LayerOffset(0), 4096 + layer);
  EXPECT_EQ(geometry->LayerOffset(1), 4096);
  EXPECT_EQ(geometry->arena_bytes, file);
  // Padding is part of how bundles are cut.
  EXPECT_NE(LayoutHash(shape), LayoutHash({DType::kQ8_0, 3, 576, 1536, 2}));

  const auto refused = [&](std::vector<int64_t> offsets) {
    return absl::IsInvalidArgument(
        ArenaGeometry::MakeInFile(shape, std::move(offsets), file).status());
  };
  EXPECT_TRUE(refused({4096}));
  EXPECT_TRUE(refused({4096, 4096 + layer, 8192}));
  EXPECT_TRUE(refused({4096, -64}));
  EXPECT_TRUE(refused({4096, 4096 + 32}));
  EXPECT_TRUE(refused({4096, 4096 + layer + 128}));
  EXPECT_TRUE(refused({4096, int64_t{1} << 62}));
  for (const int64_t bytes : {int64_t{1}, int64_t{1792}, int64_t{2180}, int64_t{-64}}) {
    shape.bundle_bytes = bytes;
    EXPECT_TRUE(refused({4096, 4096 + layer})) << bytes;
    EXPECT_TRUE(absl::IsInvalidArgument(ArenaGeometry::Make(shape).status())) << bytes;
  }
}

TEST(ArenaLayoutTest, RefusesShapesThatWrap) {
  EXPECT_FALSE(ArenaGeometry::Make({DType::kF16, 3, int64_t{1} << 62, 1, 1}).ok());
  EXPECT_FALSE(ArenaGeometry::Make({DType::kF16, 3, 64, int64_t{1} << 56, 1}).ok());
  EXPECT_FALSE(ArenaGeometry::Make({DType::kF16, 3, 64, 64, int64_t{1} << 50}).ok());
  EXPECT_FALSE(ArenaGeometry::Make({DType::kF16, 4, 64, 64, 1}).ok());
  EXPECT_FALSE(ArenaGeometry::Make({DType::kQ8_0, 3, 33, 64, 1}).ok());
}

}  // namespace
}  // namespace isotherm::shm
