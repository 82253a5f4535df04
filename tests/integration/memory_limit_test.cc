// The cpu_worker in a real memory cgroup: too small for the arena is a clear end before anything is
// allocated, never the kernel's kill. Skipped, and says so, where cgroups may not be made.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/integration/child_process.h"
#include "tests/integration/process_state.h"
#include "tests/reference/real_model.h"

namespace isotherm::integration {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;

// A memory cgroup below our own, of either version; it ends with this.
class MemoryCgroup {
 public:
  explicit MemoryCgroup(int64_t limit_bytes) {
    std::ifstream own("/proc/self/cgroup");
    for (std::string line; folder_.empty() && std::getline(own, line);) {
      const size_t first = line.find(':'), second = line.find(':', first + 1);
      const std::string controllers = line.substr(first + 1, second - first - 1);
      const std::string path = line.substr(second + 1);
      if (controllers == "memory") {
        Make("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes", limit_bytes);
      } else if (controllers.empty()) {
        Make("/sys/fs/cgroup" + path, "memory.max", limit_bytes);
      }
    }
  }
  ~MemoryCgroup() {
    // The processes in it have ended, but the kernel may still be at it.
    if (!folder_.empty()) Eventually(seconds(5), [this] { return ::rmdir(folder_.c_str()) == 0; });
  }
  bool made() const { return !folder_.empty(); }
  const std::string& folder() const { return folder_; }

 private:
  void Make(const std::string& parent, const std::string& limit_file, int64_t limit_bytes) {
    const std::string folder = parent + "/isotherm-test-" + std::to_string(::getpid());
    std::error_code error;
    if (!fs::create_directory(folder, error)) return;
    std::ofstream file(folder + "/" + limit_file);
    if (file << limit_bytes << std::flush) {
      folder_ = folder;
    } else {
      ::rmdir(folder.c_str());
    }
  }
  std::string folder_;
};

class MemoryLimitTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(reference::RealModelPath().empty()) << reference::kNoRealModel;
    std::string pattern = (fs::temp_directory_path() / "isotherm-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { fs::remove_all(directory_); }

  // A cpu_worker that joins the cgroup before it begins.
  std::unique_ptr<ChildProcess> Start(const MemoryCgroup& cgroup) {
    return std::make_unique<ChildProcess>(
        "cpu-worker",
        std::vector<std::string>{
            "/bin/sh", "-c", "echo $$ > " + cgroup.folder() + "/cgroup.procs && exec \"$0\" \"$@\"",
            std::string(ISOTHERM_BINARY_DIR) + "/bin/isotherm-cpu-worker", "--model",
            reference::RealModelPath(), "--listen", "unix:" + directory_ + "/cpu.sock",
            "--socket-dir", directory_},
        directory_ + "/log");
  }
  std::string directory_;
};

TEST_F(MemoryLimitTest, TooSmallACgroupIsAShortageWithBothNumbers) {
  const MemoryCgroup cgroup(int64_t{64} << 20);
  if (!cgroup.made()) GTEST_SKIP() << "no memory cgroup may be made here";
  const auto worker = Start(cgroup);
  EXPECT_EQ(worker->WaitForExit(seconds(30)), 71) << worker->Log();
  EXPECT_THAT(worker->Log(),
              AllOf(HasSubstr("the arena needs"), HasSubstr("the cgroup's memory limit leaves"),
                    HasSubstr("raise the container's memory limit")));
}

TEST_F(MemoryLimitTest, ACgroupThatIsLargeEnoughServes) {
  const MemoryCgroup cgroup(int64_t{256} << 20);
  if (!cgroup.made()) GTEST_SKIP() << "no memory cgroup may be made here";
  const auto worker = Start(cgroup);
  EXPECT_TRUE(worker->WaitForLine("ready", seconds(60)).has_value()) << worker->Log();
  worker->Signal(SIGTERM);
  EXPECT_EQ(worker->WaitForExit(seconds(10)), 0) << worker->Log();
}

}  // namespace
}  // namespace isotherm::integration
