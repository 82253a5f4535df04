#include "common/shm/process_identity.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace isotherm::shm {

ProcessIdentity ProcessIdentityOf(pid_t pid) {
  ProcessIdentity identity{.pid = pid};
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The second field is the program's name in parentheses and may hold anything, spaces included.
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos || name_end + 2 > text.size()) return identity;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(text).substr(name_end + 2), ' ');
  constexpr size_t kStartTime = 22 - 3;  // fields from the third on are left
  if (fields.size() > kStartTime) {
    uint64_t ticks = 0;
    if (absl::SimpleAtoi(fields[kStartTime], &ticks)) identity.start_ticks = ticks;
  }
  return identity;
}

ProcessIdentity OwnIdentity() { return ProcessIdentityOf(::getpid()); }

bool SharesPidNamespace(pid_t pid) {
  if (pid <= 0) return false;
  struct stat own {};
  struct stat other {};
  return ::stat("/proc/self/ns/pid", &own) == 0 &&
         ::stat(absl::StrCat("/proc/", pid, "/ns/pid").c_str(), &other) == 0 &&
         own.st_dev == other.st_dev && own.st_ino == other.st_ino;
}

}  // namespace isotherm::shm
