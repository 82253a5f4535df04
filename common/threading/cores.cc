#include "common/threading/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace isotherm {
namespace {

// The kernel refuses to fill a mask smaller than its own; this is its largest configuration.
constexpr int kMaxCpus = 8192;

std::optional<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::optional<double> Ratio(absl::string_view quota, absl::string_view period) {
  int64_t quota_us = 0, period_us = 0;
  if (!absl::SimpleAtoi(quota, &quota_us) || !absl::SimpleAtoi(period, &period_us)) {
    return std::nullopt;  // "max" or unreadable: no limit at this level
  }
  if (quota_us <= 0 || period_us <= 0) return std::nullopt;  // v1 writes -1 for no limit
  return static_cast<double>(quota_us) / static_cast<double>(period_us);
}

std::optional<double> QuotaV2(const std::string& folder) {
  const auto text = ReadSmallFile(absl::StrCat(folder, "/cpu.max"));
  if (!text) return std::nullopt;
  const std::vector<absl::string_view> words =
      absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  return words.size() == 2 ? Ratio(words[0], words[1]) : std::nullopt;
}

std::optional<double> QuotaV1(const std::string& folder) {
  const auto quota = ReadSmallFile(absl::StrCat(folder, "/cpu.cfs_quota_us"));
  const auto period = ReadSmallFile(absl::StrCat(folder, "/cpu.cfs_period_us"));
  return quota && period ? Ratio(*quota, *period) : std::nullopt;
}

void Tighten(std::optional<double>& least, std::optional<double> quota) {
  if (quota && (!least || *quota < *least)) least = quota;
}

// Visits path, its parent, ... and "" (the root of the hierarchy).
template <typename Visit>
void ForEachLevel(std::string path, const Visit& visit) {
  while (!path.empty() && path.back() == '/') path.pop_back();
  while (true) {
    visit(path);
    if (path.empty()) return;
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

}  // namespace

std::optional<double> CgroupQuotaCores(const std::string& cgroup_root,
                                       absl::string_view proc_self_cgroup) {
  std::optional<double> least;
  for (absl::string_view line : absl::StrSplit(proc_self_cgroup, '\n', absl::SkipEmpty())) {
    // "0::/path" in v2, "4:cpu,cpuacct:/path" in v1.
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::string path(fields[2]);
    if (fields[1].empty()) {
      ForEachLevel(path, [&](const std::string& level) {
        Tighten(least, QuotaV2(absl::StrCat(cgroup_root, level)));
      });
      continue;
    }
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    if (std::find(controllers.begin(), controllers.end(), "cpu") == controllers.end()) continue;
    for (const std::string& mount : {std::string("/cpu"), absl::StrCat("/", fields[1])}) {
      ForEachLevel(path, [&](const std::string& level) {
        Tighten(least, QuotaV1(absl::StrCat(cgroup_root, mount, level)));
      });
    }
  }
  return least;
}

bool BindThisThread(const std::vector<int>& cpus) {
  cpu_set_t* mask = CPU_ALLOC(kMaxCpus);
  const size_t mask_bytes = CPU_ALLOC_SIZE(kMaxCpus);
  CPU_ZERO_S(mask_bytes, mask);
  for (const int cpu : cpus) {
    if (cpu >= 0 && cpu < kMaxCpus) CPU_SET_S(cpu, mask_bytes, mask);
  }
  const bool bound = sched_setaffinity(0, mask_bytes, mask) == 0;
  CPU_FREE(mask);
  return bound;
}

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  cpu_set_t* mask = CPU_ALLOC(kMaxCpus);
  const size_t mask_bytes = CPU_ALLOC_SIZE(kMaxCpus);
  CPU_ZERO_S(mask_bytes, mask);
  if (sched_getaffinity(0, mask_bytes, mask) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; ++cpu) {
      if (CPU_ISSET_S(cpu, mask_bytes, mask)) cpus.push_back(cpu);
    }
  }
  CPU_FREE(mask);
  return cpus;
}

int AllowedCores() {
  int cores = std::max(1, static_cast<int>(AllowedCpus().size()));
  const auto cgroups = ReadSmallFile("/proc/self/cgroup");
  if (cgroups) {
    const std::optional<double> quota = CgroupQuotaCores("/sys/fs/cgroup", *cgroups);
    if (quota && *quota < cores) cores = std::max(1, static_cast<int>(std::floor(*quota)));
  }
  return cores;
}

int DefaultThreadCountFor(int allowed_cores) {
  return allowed_cores <= 2 ? std::max(1, allowed_cores) : allowed_cores - 1;
}

int DefaultThreadCount() { return DefaultThreadCountFor(AllowedCores()); }

}  // namespace isotherm
