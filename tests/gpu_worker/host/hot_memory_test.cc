// What the host backend keeps of memory for hot neurons while their number changes.
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/checked_math.h"
#include "tests/gpu_worker/device_harness.h"
#include "tests/reference/random_model.h"

namespace isotherm::gpu {
namespace {

class HotMemoryTest : public testing::Test {
 protected:
  static std::string Write() {
    const std::string path =
        testing::TempDir() + "/hot-memory-" + std::to_string(::getpid()) + ".gguf";
    const absl::Status status = reference::WriteRandomModel(path, {.sparse = true, .seed = 5});
    EXPECT_TRUE(status.ok()) << status;
    return path;
  }
  // Whole pages of the pool that have memory behind them.
  int64_t ResidentPages() {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const std::span<const std::byte> memory = harness_.device().hot_memory();
    const auto start = reinterpret_cast<uintptr_t>(memory.data());
    const uintptr_t first = RoundUp(start, page), last = (start + memory.size()) / page * page;
    std::vector<unsigned char> resident((last - first) / page);
    EXPECT_EQ(::mincore(reinterpret_cast<void*>(first), last - first, resident.data()), 0);
    int64_t count = 0;
    for (const unsigned char here : resident) count += here & 1;
    return count;
  }
  std::vector<TokenId> Continue() { return harness_.Greedy({3, 17, 40, 8, 25, 31, 2}, 12); }

  DeviceHarness harness_{Write()};
};

TEST_F(HotMemoryTest, ASmallerHotSetGivesPagesBackAndALargerOneTakesThem) {
  const std::vector<TokenId> want = Continue();
  harness_.SetHot(1, 1.0, 8);
  const int64_t all = ResidentPages();
  EXPECT_EQ(Continue(), want);
  // Beside the old plan's copies the new ones take nothing: they are among them.
  harness_.SetHot(2, 0.2, 8);
  EXPECT_EQ(Continue(), want);
  ASSERT_TRUE(harness_.device().Retire(1).ok());
  EXPECT_EQ(Continue(), want);
  const int64_t few = ResidentPages();
  EXPECT_LT(few, all / 2);
  EXPECT_LT(harness_.device().Describe().memory.hot_pool,
            harness_.device().Describe().hot_capacity_bytes / 3);
  harness_.SetHot(3, 0, 8);
  ASSERT_TRUE(harness_.device().Retire(2).ok());
  EXPECT_EQ(Continue(), want);
  EXPECT_EQ(ResidentPages(), 0);
  harness_.SetHot(4, 0.9, 8);
  ASSERT_TRUE(harness_.device().Retire(3).ok());
  EXPECT_EQ(Continue(), want);
  EXPECT_GT(ResidentPages(), few);
}

}  // namespace
}  // namespace isotherm::gpu
