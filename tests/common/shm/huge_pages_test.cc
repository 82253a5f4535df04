#include "common/shm/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <fstream>

#include "common/base/exit_code.h"

namespace isotherm::shm {
namespace {

constexpr int64_t kHugePagesBytes = 3 * kHugePage + 12'288;

int64_t BytesReserved(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return int64_t{info.st_blocks} * 512;
}

TEST(ReservePagesTest, ReservesEveryPageOfItsRangeOnly) {
  auto fd = CreateUnreservedMemory("test", kHugePagesBytes, {});
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_TRUE(CheckSealedMemory(fd->get(), kHugePagesBytes).ok());
  EXPECT_EQ(BytesReserved(fd->get()), 0);
  auto mapping = MapShared(fd->get(), kHugePagesBytes, Access::kReadWrite);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  ASSERT_TRUE(ReservePages(fd->get(), *mapping, kHugePage, kHugePage, "test").ok());
  EXPECT_EQ(BytesReserved(fd->get()), kHugePage);
  ASSERT_TRUE(ReservePages(fd->get(), *mapping, 0, kHugePagesBytes, "test").ok());
  EXPECT_EQ(BytesReserved(fd->get()), kHugePagesBytes);
  for (int64_t at = 0; at < kHugePagesBytes; at += 4096)
    EXPECT_EQ(mapping->data()[at], std::byte{0});
}

TEST(ReservePagesTest, KeepsWhatIsWrittenAlready) {
  auto fd = *CreateSealedMemory("test", kHugePagesBytes, {});
  auto mapping = *MapShared(fd.get(), kHugePagesBytes, Access::kReadWrite);
  std::memset(mapping.data(), 7, kHugePagesBytes);
  ASSERT_TRUE(ReservePages(fd.get(), mapping, 0, kHugePagesBytes, "test").ok());
  for (int64_t at = 0; at < kHugePagesBytes; at += 1001)
    ASSERT_EQ(mapping.data()[at], std::byte{7});
}

TEST(ReservePagesTest, ARefusedReservationIsAShortage) {
  auto fd = *CreateUnreservedMemory("test", kHugePage, {});
  auto mapping = *MapShared(fd.get(), kHugePage, Access::kReadWrite);
  // The size is sealed, so the kernel refuses to reserve past it.
  const absl::Status status = ReservePages(fd.get(), mapping, 0, 2 * kHugePage, "the arena");
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kShortage);
  EXPECT_NE(status.message().find("the arena"), std::string::npos) << status;
}

TEST(CreateUnreservedMemoryTest, AsksForTheMemoryFirst) {
  EXPECT_EQ(
      ExitCodeOf(CreateUnreservedMemory("test", kHugePagesBytes, {.available = 100}).status()),
      ExitCode::kShortage);
}

TEST(HugePageBytesTest, AddsUpWhatTheKernelSaysOfTheMapping) {
  const std::string path = testing::TempDir() + "/smaps";
  std::ofstream(path) << "7f0000000000-7f0000400000 rw-s 00000000 00:01 1 /memfd:a (deleted)\n"
                         "Size:               4096 kB\n"
                         "ShmemPmdMapped:     2048 kB\n"
                         "7f0000400000-7f0000800000 r--s 00000000 00:01 1 /memfd:a (deleted)\n"
                         "AnonHugePages:      4096 kB\n"
                         "ShmemPmdMapped:     4096 kB\n"
                         "7f0000800000-7f0000a00000 rw-p 00000000 00:00 0\n"
                         "ShmemPmdMapped:     9999 kB\n";
  const auto* const data = reinterpret_cast<void*>(uintptr_t{0x7f0000000000});
  EXPECT_EQ(HugePageBytes(data, 8 << 20, path), 6 << 20);
  EXPECT_EQ(HugePageBytes(data, 4 << 20, path), 2 << 20);
  EXPECT_EQ(HugePageBytes(data, 8 << 20, "/nonexistent"), 0);
}

}  // namespace
}  // namespace isotherm::shm
