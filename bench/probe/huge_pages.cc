#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>

#include "bench/probe/figure.h"
#include "bench/probe/line.h"
#include "bench/probe/pinned_threads.h"
#include "bench/probe/timed_reads.h"

namespace isotherm::probe {
namespace {

std::string Text(const std::string& path) {
  std::ifstream file(path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

// Options of the tmpfs at `path`, from /proc/self/mounts.
std::string MountOptions(const std::string& path) {
  std::ifstream mounts("/proc/self/mounts");
  for (std::string device, at, type, options, rest;
       mounts >> device >> at >> type >> options && std::getline(mounts, rest);) {
    if (at == path) return type + " " + options;
  }
  return "not mounted";
}

void Measure(const char* what, const TestMemory::Options& options, const std::vector<int>& cpus) {
  const TestMemory memory(options);
  Line line("huge_pages");
  line.Set("memory", what);
  if (memory.data() == nullptr) {
    line.Set("error", memory.error());
    return;
  }
  if (!memory.note().empty()) line.Set("refused", memory.note());
  const TestMemory::HugeBytes huge = memory.huge_bytes();
  line.Set("bytes", memory.bytes()).Set("anon_huge", huge.anonymous);
  line.Set("shmem_pmd_mapped", huge.shmem_mapped).Set("file_pmd_mapped", huge.file_mapped);
  line.Set("fill_s_per_gb", memory.fill_s() / (static_cast<double>(memory.bytes()) / 1e9));
  if (options.collapse || options.collapse_first) {
    line.Set("collapse_s_per_gb",
             memory.collapse_s() / (static_cast<double>(memory.bytes()) / 1e9));
  }
  const ReadRate linear = ReadLinearly(memory, cpus, Fetch::kL2, 0.2);
  const ReadRate small = ReadBundles(
      memory, cpus, {.bundle_bytes = 24 << 10, .streams = 2, .ahead = {.lines_per_page = 64}}, 0.3);
  const ReadRate large = ReadBundles(
      memory, cpus, {.bundle_bytes = 32 << 10, .streams = 2, .ahead = {.lines_per_page = 64}}, 0.3);
  if (!linear.right || !small.right || !large.right) {
    line.Set("error", "wrong sum");
    return;
  }
  line.Set("threads", static_cast<int>(cpus.size())).Set("linear_gb_s", linear.gb_s);
  line.Set("bundle_24k_gb_s", small.gb_s).Set("bundle_32k_gb_s", large.gb_s);
}

}  // namespace

void HugePages() {
  const std::string policy = "/sys/kernel/mm/transparent_hugepage/";
  Line("huge_pages")
      .Set("enabled", Text(policy + "enabled"))
      .Set("shmem_enabled", Text(policy + "shmem_enabled"))
      .Set("shmem_enabled_2m", Text(policy + "hugepages-2048kB/shmem_enabled"))
      .Set("defrag", Text(policy + "defrag"))
      .Set("dev_shm", MountOptions("/dev/shm"))
      .Set("free_hugetlb", Text("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"));

  using Kind = TestMemory::Kind;
  constexpr int64_t kBytes = int64_t{1} << 30;
  const int allowed = static_cast<int>(FirstCpus(1024).size());
  const std::vector<int> cpus = FirstCpus(std::max(1, allowed - 1));
  Measure("anonymous", {.bytes = kBytes}, cpus);
  Measure("anonymous, advised", {.bytes = kBytes, .advise_huge = true}, cpus);
  Measure("memfd, as the arena", {.kind = Kind::kSealedMemfd, .bytes = kBytes}, cpus);
  Measure(
      "memfd, advised before the first touch",
      {.kind = Kind::kSealedMemfd, .bytes = kBytes, .advise_huge = true, .reserve_first = false},
      cpus);
  Measure(
      "memfd, collapsed before the first touch",
      {.kind = Kind::kSealedMemfd, .bytes = kBytes, .reserve_first = false, .collapse_first = true},
      cpus);
  Measure("memfd, collapsed after the fill",
          {.kind = Kind::kSealedMemfd, .bytes = kBytes, .collapse = true}, cpus);
  Measure("file in /dev/shm, advised",
          {.kind = Kind::kFile,
           .bytes = kBytes,
           .advise_huge = true,
           .reserve_first = false,
           .directory = "/dev/shm"},
          cpus);
}

}  // namespace isotherm::probe
