#include "common/threading/cores.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/threading/cpu_list.h"

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

// thread 0: the calling one.
bool Bind(int thread, const std::vector<int>& cpus) {
  cpu_set_t* mask = CPU_ALLOC(kMaxCpus);
  const size_t mask_bytes = CPU_ALLOC_SIZE(kMaxCpus);
  CPU_ZERO_S(mask_bytes, mask);
  for (const int cpu : cpus) {
    if (cpu >= 0 && cpu < kMaxCpus) CPU_SET_S(cpu, mask_bytes, mask);
  }
  const bool bound = sched_setaffinity(thread, mask_bytes, mask) == 0;
  CPU_FREE(mask);
  return bound;
}

// Calls visit(root of the hierarchy, path in it) for each place where this process's group may have
// `controller`'s files.
template <typename Visit>
void ForEachGroup(const std::string& cgroup_root, absl::string_view proc_self_cgroup,
                  absl::string_view controller, const Visit& visit) {
  for (absl::string_view line : absl::StrSplit(proc_self_cgroup, '\n', absl::SkipEmpty())) {
    // "0::/path" in v2, "4:cpu,cpuacct:/path" in v1.
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::string path(fields[2]);
    if (fields[1].empty()) {
      visit(cgroup_root, path, /*v2=*/true);
      continue;
    }
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) {
      continue;
    }
    visit(absl::StrCat(cgroup_root, "/", controller), path, false);
    if (controllers.size() > 1) visit(absl::StrCat(cgroup_root, "/", fields[1]), path, false);
  }
}

}  // namespace

std::optional<std::vector<int>> CgroupCpus(const std::string& cgroup_root,
                                           absl::string_view proc_self_cgroup) {
  std::optional<std::vector<int>> found;
  ForEachGroup(
      cgroup_root, proc_self_cgroup, "cpuset",
      [&](const std::string& root, const std::string& path, bool v2) {
        ForEachLevel(path, [&](const std::string& level) {
          for (const char* file :
               {v2 ? "/cpuset.cpus.effective" : "/cpuset.effective_cpus", "/cpuset.cpus"}) {
            if (found) return;
            const auto text = ReadSmallFile(absl::StrCat(root, level, file));
            const auto cpus = text ? ParseCpuList(*text) : std::nullopt;
            if (cpus && !cpus->empty()) found = cpus;
          }
        });
      });
  return found;
}

std::optional<double> CgroupQuotaCores(const std::string& cgroup_root,
                                       absl::string_view proc_self_cgroup) {
  std::optional<double> least;
  ForEachGroup(cgroup_root, proc_self_cgroup, "cpu",
               [&](const std::string& root, const std::string& path, bool v2) {
                 ForEachLevel(path, [&](const std::string& level) {
                   const std::string folder = absl::StrCat(root, level);
                   Tighten(least, v2 ? QuotaV2(folder) : QuotaV1(folder));
                 });
               });
  return least;
}

bool BindThisThread(const std::vector<int>& cpus) { return Bind(0, cpus); }

bool BindProcess(const std::vector<int>& cpus) {
  if (!BindThisThread(cpus)) return false;
  bool all = true;
  // A thread that is started meanwhile comes from one that is bound by now or is listed later.
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    int thread = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &thread)) continue;
    all &= Bind(thread, cpus) || errno == ESRCH;  // it may have ended
  }
  return all && !error;
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
  // The kernel keeps the mask within the cpuset, but not every sandbox does.
  const auto cgroups = ReadSmallFile("/proc/self/cgroup");
  const auto cpuset = cgroups ? CgroupCpus("/sys/fs/cgroup", *cgroups) : std::nullopt;
  if (!cpuset) return cpus;
  std::vector<int> both;
  std::set_intersection(cpus.begin(), cpus.end(), cpuset->begin(), cpuset->end(),
                        std::back_inserter(both));
  return both.empty() ? cpus : both;
}

std::string QuotaWarning(std::optional<double> quota_cores, int num_cpus) {
  if (!quota_cores || *quota_cores >= num_cpus) return "";
  return absl::StrFormat(
      "the cgroup's quota is %g of %d CPUs' time: once it is used up all threads stop for "
      "milliseconds; give whole CPUs instead (cpuset, docker --cpuset-cpus, Kubernetes' static CPU "
      "manager policy)",
      *quota_cores, num_cpus);
}

std::string QuotaWarning() {
  const auto cgroups = ReadSmallFile("/proc/self/cgroup");
  if (!cgroups) return "";
  return QuotaWarning(CgroupQuotaCores("/sys/fs/cgroup", *cgroups),
                      static_cast<int>(AllowedCpus().size()));
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
