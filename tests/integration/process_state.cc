#include "tests/integration/process_state.h"

#include <poll.h>

#include <algorithm>
#include <filesystem>
#include <iterator>

namespace isotherm::integration {
namespace {

int NumEntries(const std::string& directory) {
  std::error_code error;
  const std::filesystem::directory_iterator entries(directory, error);
  if (error) return -1;
  return static_cast<int>(std::distance(entries, std::filesystem::directory_iterator()));
}

}  // namespace

int NumFds(pid_t pid) { return NumEntries("/proc/" + std::to_string(pid) + "/fd"); }
int NumThreads(pid_t pid) { return NumEntries("/proc/" + std::to_string(pid) + "/task"); }

std::vector<std::string> Names(const std::string& directory, bool sockets_only) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (!sockets_only || entry.is_socket()) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool Eventually(std::chrono::milliseconds timeout, const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    // A busy wait would take the processors from the processes under test.
    ::poll(nullptr, 0, 10);
  }
  return true;
}

}  // namespace isotherm::integration
