#include "common/shm/file_mapping.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "common/base/exit_code.h"
#include "common/base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm::shm {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBytes = (int64_t{3} << 20) + 100;

// A file of kBytes whose byte i is i % 251, in that folder.
class TestFile {
 public:
  explicit TestFile(const std::string& folder) : path_(folder + "/file_mapping_XXXXXX") {
    fd_.Reset(::mkstemp(path_.data()));
    if (!fd_.valid()) return;
    std::string bytes(kBytes, '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 251);
    EXPECT_EQ(::write(fd_.get(), bytes.data(), bytes.size()), kBytes);
    read_only_.Reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  }
  ~TestFile() { ::unlink(path_.c_str()); }

  bool valid() const { return read_only_.valid(); }
  int writable() const { return fd_.get(); }
  int fd() const { return read_only_.get(); }
  const std::string& path() const { return path_; }
  FileIdentity identity() const { return *IdentityOf(fd()); }

 private:
  std::string path_;
  UniqueFd fd_, read_only_;
};

// In the temporary folder, which mostly is on a disk, and in memory.
class FileMappingTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(file_.valid());
    if (GetParam()) {
      ASSERT_TRUE(LiesInMemory(file_.fd()));
    }
  }
  bool in_memory() const { return LiesInMemory(file_.fd()); }

  const TestFile file_{GetParam() ? "/dev/shm" : testing::TempDir()};
};

INSTANTIATE_TEST_SUITE_P(Folders, FileMappingTest, testing::Bool(),
                         [](const auto& folder) { return folder.param ? "memory" : "temporary"; });

TEST_P(FileMappingTest, MapsAllOfTheFileOnAHugePagesStart) {
  auto mapping = MapFile(file_.fd(), file_.identity(), "the file");
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->size(), kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(mapping->data()) % (2 << 20), 0u);
  for (const int64_t i : {int64_t{0}, int64_t{4096}, kBytes - 1}) {
    EXPECT_EQ(static_cast<int64_t>(mapping->data()[i]), i % 251);
  }
  // Shared: what is written to the file shows.
  const char changed = 'x';
  ASSERT_EQ(::pwrite(file_.writable(), &changed, 1, 5000), 1);
  EXPECT_EQ(static_cast<char>(mapping->data()[5000]), changed);
}

TEST_P(FileMappingTest, CanBeOpenedForWritingInMemoryOnly) {
  const auto open = [](const Mapping& mapping) {
    return ::mprotect(mapping.data(), static_cast<size_t>(mapping.size()),
                      PROT_READ | PROT_WRITE) == 0;
  };
  auto closed = MapFile(file_.fd(), file_.identity(), "the file");
  ASSERT_TRUE(closed.ok());
  EXPECT_FALSE(open(*closed));
  auto mapping = MapFile(file_.fd(), file_.identity(), "the file", {.may_be_opened = true});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(open(*mapping), in_memory());
  if (!in_memory()) return;
  mapping->data()[17] = mapping->data()[17];  // as a pin does
  EXPECT_TRUE(mapping->MakeReadOnly().ok());
  EXPECT_TRUE(CheckIdentity(file_.fd(), file_.identity(), "the file").ok());
  EXPECT_TRUE(MapFile(file_.fd(), file_.identity(), "the file").ok());
}

// Root may write anything, so this cannot be shown as root.
TEST_P(FileMappingTest, IsMappedThoughItMayNotBeWritten) {
  ASSERT_EQ(::chmod(file_.path().c_str(), 0400), 0);
  auto mapping = MapFile(file_.fd(), file_.identity(), "the file", {.may_be_opened = true});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(static_cast<int>(mapping->data()[7]), 7);
}

TEST_P(FileMappingTest, AnotherFileIsRefused) {
  const TestFile other(GetParam() ? "/dev/shm" : testing::TempDir());
  const absl::Status status = MapFile(other.fd(), file_.identity(), "the file").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the file is another file"));
}

TEST_P(FileMappingTest, AnotherSizeIsRefused) {
  const FileIdentity before = file_.identity();
  ASSERT_EQ(::ftruncate(file_.writable(), kBytes - 1), 0);
  const absl::Status status = MapFile(file_.fd(), before, "the file").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("has 3145827 bytes, had 3145828"));
}

TEST_P(FileMappingTest, ATouchedFileIsRefusedOnADisk) {
  const FileIdentity before = file_.identity();
  const timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000}};
  ASSERT_EQ(::futimens(file_.writable(), times), 0);
  const absl::Status status = MapFile(file_.fd(), before, "the file").status();
  EXPECT_EQ(absl::IsFailedPrecondition(status), !in_memory());
}

using FileMappingDeathTest = FileMappingTest;
INSTANTIATE_TEST_SUITE_P(Folders, FileMappingDeathTest, testing::Bool(),
                         [](const auto& folder) { return folder.param ? "memory" : "temporary"; });

TEST_P(FileMappingDeathTest, AccessToAFileThatBecameShorterEndsTheProcessWithAReason) {
  const auto die = [&] {
    auto mapping = MapFile(file_.fd(), file_.identity(), "model.gguf");
    auto other = MapFile(file_.fd(), file_.identity(), "other.gguf");
    Mapping moved = *std::move(mapping);
    if (::ftruncate(file_.writable(), 4096) != 0) return;
    (void)*static_cast<volatile std::byte*>(moved.data() + (2 << 20));
  };
  EXPECT_EXIT(die(), testing::ExitedWithCode(static_cast<int>(ExitCode::kBadData)),
              "model.gguf became shorter while it was in use");
}

TEST_P(FileMappingDeathTest, OtherBusErrorsEndTheProcessAsTheyDid) {
  const auto die = [&] {
    auto mapping = MapFile(file_.fd(), file_.identity(), "model.gguf");
    void* const plain = ::mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file_.fd(), 0);
    if (plain == MAP_FAILED || ::ftruncate(file_.writable(), 4096) != 0) return;
    ::signal(SIGALRM, SIG_DFL);
    ::alarm(20);  // a handler that returns for ever would hang
    (void)*(static_cast<volatile char*>(plain) + (2 << 20));
  };
#if defined(__SANITIZE_ADDRESS__)
  EXPECT_DEATH(die(), "BUS");  // the sanitizer's own handler is the one before
#else
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGBUS), "");
#endif
}

}  // namespace
}  // namespace isotherm::shm
