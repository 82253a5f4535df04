// A hostile header must not make the reader allocate more than the file's size and a megabyte. All
// allocations of this binary are counted.

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "gtest/gtest.h"
#include "models/gguf/gguf_file.h"
#include "tests/models/gguf/gguf_bytes.h"

namespace {

// Each block has its size in front.
constexpr size_t kPrefix = alignof(std::max_align_t);
std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};

void* Allocate(size_t bytes) {
  auto* block = static_cast<char*>(std::malloc(bytes + kPrefix));
  if (block == nullptr) std::abort();
  *reinterpret_cast<size_t*>(block) = bytes;
  const int64_t live = live_bytes += static_cast<int64_t>(bytes);
  if (live > peak_bytes) peak_bytes = live;
  return block + kPrefix;
}

void Release(void* at) {
  if (at == nullptr) return;
  char* block = static_cast<char*>(at) - kPrefix;
  live_bytes -= static_cast<int64_t>(*reinterpret_cast<size_t*>(block));
  std::free(block);
}

}  // namespace

void* operator new(size_t bytes) { return Allocate(bytes); }
void* operator new[](size_t bytes) { return Allocate(bytes); }
void operator delete(void* at) noexcept { Release(at); }
void operator delete[](void* at) noexcept { Release(at); }
void operator delete(void* at, size_t) noexcept { Release(at); }
void operator delete[](void* at, size_t) noexcept { Release(at); }

namespace isotherm {
namespace {

// What opening the file allocated at its peak.
int64_t PeakOfOpening(const MemoryFile& file) {
  const std::string path = file.path();
  const int64_t before = live_bytes;
  peak_bytes = before;
  const auto opened = GgufFile::Open(path);
  return peak_bytes - before;
}

constexpr int64_t kSpare = int64_t{1} << 20;

TEST(GgufAllocationTest, CountsThatExceedTheFileReserveNothing) {
  constexpr uint64_t kHuge[] = {~uint64_t{0}, uint64_t{1} << 63, uint64_t{1} << 32,
                                uint64_t{16} << 20, 65'536};
  for (const uint64_t count : kHuge) {
    for (const uint32_t type : {0u, 4u, 6u, 7u, 8u, 10u, 12u}) {
      const std::string bytes = GgufBytes().Header(0, 1).Array("k", type, count, 100).bytes();
      EXPECT_LE(PeakOfOpening(MemoryFile(bytes)), static_cast<int64_t>(bytes.size()) + kSpare);
    }
    const std::string text =
        GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(count).bytes();
    EXPECT_LE(PeakOfOpening(MemoryFile(text)), static_cast<int64_t>(text.size()) + kSpare);
    const std::string counts = GgufBytes().Header(count, count).bytes();
    EXPECT_LE(PeakOfOpening(MemoryFile(counts)), static_cast<int64_t>(counts.size()) + kSpare);
  }
}

TEST(GgufAllocationTest, ArraysAreNotBlownUp) {
  constexpr size_t kBytes = size_t{8} << 20;
  for (const uint32_t type : {0u, 7u, 8u, 10u}) {
    const uint64_t count = kBytes / (type == 8 || type == 10 ? 8 : 1);
    const std::string bytes = GgufBytes().Header(0, 1).Array("k", type, count, kBytes).bytes();
    const MemoryFile file(bytes);
    const auto start = std::chrono::steady_clock::now();
    // Twice: the text is held once more while it grows.
    EXPECT_LE(PeakOfOpening(file), 2 * static_cast<int64_t>(bytes.size()) + kSpare);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    EXPECT_TRUE(GgufFile::Open(file.path()).ok());
  }
}

}  // namespace
}  // namespace isotherm
