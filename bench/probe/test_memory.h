#pragma once

#include <cstdint>
#include <string>

namespace isotherm::probe {

// Memory whose every word tells where it lies, so that what was read can be checked: all words of
// block b (8 KiB) are BlockWord(b). A bundle or piece of whole blocks has a known sum.
inline constexpr int64_t kBlockBytes = 8192;
inline constexpr int64_t kBlockWords = kBlockBytes / 8;

inline uint64_t BlockWord(int64_t block) {
  return (static_cast<uint64_t>(block) + 1) * 0x9e3779b97f4a7c15u;
}
// Sum of the words of `count` blocks from `first` on, modulo 2^64.
inline uint64_t BlocksSum(int64_t first, int64_t count) {
  uint64_t sum = 0;
  for (int64_t b = first; b < first + count; ++b) sum += BlockWord(b) * kBlockWords;
  return sum;
}

class TestMemory {
 public:
  enum class Kind {
    kAnonymous,
    kSealedMemfd,  // as the arena: size sealed, pages reserved
    kFile,         // in `directory`, unlinked
  };
  struct Options {
    Kind kind = Kind::kAnonymous;
    int64_t bytes = 0;
    bool advise_huge = false;     // madvise(MADV_HUGEPAGE) before the first touch
    bool reserve_first = true;    // memfd: fallocate before the mapping, as the arena does
    bool collapse_first = false;  // one page reserved in each 2 MiB, then madvise(MADV_COLLAPSE)
    bool collapse = false;        // madvise(MADV_COLLAPSE) once filled
    std::string directory;        // kFile
  };
  // All cores fill it. On failure data() is null and error() says why.
  explicit TestMemory(const Options& options);
  ~TestMemory();
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  uint64_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  int fd() const { return fd_; }
  const std::string& error() const { return error_; }
  const std::string& note() const { return note_; }  // why an advice was refused, or empty
  double fill_s() const { return fill_s_; }
  double collapse_s() const { return collapse_s_; }

  // Bytes of this mapping in 2 MiB pages, as /proc/self/smaps says: (anonymous, shared memory).
  struct HugeBytes {
    int64_t anonymous = 0;
    int64_t shmem_mapped = 0;
    int64_t file_mapped = 0;
  };
  HugeBytes huge_bytes() const;

 private:
  void Fail(const std::string& what);
  bool Open(const Options& options);
  bool Map(const Options& options);
  void Fill();
  void Collapse();

  uint64_t* data_ = nullptr;
  void* reserved_ = nullptr;
  int64_t reserved_bytes_ = 0;
  int64_t bytes_ = 0;
  int fd_ = -1;
  double fill_s_ = 0;
  double collapse_s_ = 0;
  std::string error_, note_;
};

}  // namespace isotherm::probe
