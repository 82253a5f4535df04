#include "common/shm/memory_limits.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/exit_code.h"
#include "common/base/units.h"

namespace isotherm::shm {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Nothing for a missing file and for "max".
std::optional<int64_t> ReadNumber(const std::string& path) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(ReadText(path)), &value)) return std::nullopt;
  return value;
}

int64_t MemAvailable(absl::string_view proc_root) {
  const std::string text = ReadText(absl::StrCat(proc_root, "/meminfo"));
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, "MemAvailable:")) continue;
    line = absl::StripAsciiWhitespace(line);
    absl::ConsumeSuffix(&line, " kB");
    int64_t kib = 0;
    if (absl::SimpleAtoi(line, &kib) && kib >= 0 && kib < kNoLimit / 1024) return kib * 1024;
  }
  return kNoLimit;
}

// Free bytes of the limits set on `directory` and on each of its parents up to `root`.
int64_t FreeUpTo(const std::string& root, std::string directory, absl::string_view limit_file,
                 absl::string_view usage_file) {
  int64_t free = kNoLimit;
  while (true) {
    const auto limit = ReadNumber(absl::StrCat(root, directory, "/", limit_file));
    const auto usage = ReadNumber(absl::StrCat(root, directory, "/", usage_file));
    if (limit.has_value() && *limit >= 0) {
      // File cache in the usage can be given back, so what is inactive does not count.
      int64_t reclaimable = 0;
      const std::string stat = ReadText(absl::StrCat(root, directory, "/memory.stat"));
      for (absl::string_view line : absl::StrSplit(stat, '\n')) {
        int64_t value = 0;
        if (absl::ConsumePrefix(&line, "inactive_file ") && absl::SimpleAtoi(line, &value)) {
          reclaimable = std::max<int64_t>(value, 0);
        }
      }
      const int64_t used = std::max<int64_t>(usage.value_or(0) - reclaimable, 0);
      free = std::min(free, std::max<int64_t>(*limit - used, 0));
    }
    const size_t slash = directory.rfind('/');
    if (slash == std::string::npos) return free;
    directory.resize(slash);
  }
}

int64_t CgroupFree(absl::string_view proc_root, const std::string& cgroup_root) {
  int64_t free = kNoLimit;
  const std::string text = ReadText(absl::StrCat(proc_root, "/self/cgroup"));
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    std::string path(parts[2] == "/" ? "" : parts[2]);
    if (parts[0] == "0" && parts[1].empty()) {  // version 2
      free = std::min(free, FreeUpTo(cgroup_root, path, "memory.max", "memory.current"));
    } else if (parts[1] == "memory") {  // version 1
      free = std::min(free, FreeUpTo(cgroup_root + "/memory", path, "memory.limit_in_bytes",
                                     "memory.usage_in_bytes"));
    }
  }
  return free;
}

int64_t FileSizeLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      limit.rlim_cur > static_cast<rlim_t>(kNoLimit)) {
    return kNoLimit;
  }
  return static_cast<int64_t>(limit.rlim_cur);
}

absl::Status Short(absl::string_view what, int64_t bytes, int64_t free, absl::string_view bound,
                   absl::string_view remedy) {
  return WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                          what, " needs ", bytes, " bytes (", FormatBytes(bytes), "), ", bound,
                          " leaves ", free, " (", FormatBytes(free), "); ", remedy)),
                      ExitCode::kShortage);
}

}  // namespace

MemoryLimits ReadMemoryLimits(absl::string_view proc_root, absl::string_view cgroup_root) {
  return {.available = MemAvailable(proc_root),
          .cgroup_free = CgroupFree(proc_root, std::string(cgroup_root)),
          .file_size = FileSizeLimit()};
}

absl::Status CheckMemoryFor(absl::string_view what, int64_t bytes, const MemoryLimits& limits) {
  if (bytes > limits.file_size) {
    return Short(what, bytes, limits.file_size, "the file size limit",
                 "raise it (ulimit -f unlimited)");
  }
  if (bytes > limits.cgroup_free) {
    return Short(what, bytes, limits.cgroup_free, "the cgroup's memory limit",
                 "raise the container's memory limit or take a smaller model");
  }
  if (bytes > limits.available) {
    return Short(what, bytes, limits.available, "this machine",
                 "free memory or take a smaller model");
  }
  return absl::OkStatus();
}

}  // namespace isotherm::shm
