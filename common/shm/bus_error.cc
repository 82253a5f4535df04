#include "common/shm/bus_error.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"

namespace isotherm::shm {
namespace {

// Read by the signal handler: `state` 2 says that the rest is in place and stays.
struct Range {
  std::atomic<int> state{0};  // 0 free, 1 being filled, 2 in force
  std::atomic<uintptr_t> first{0};
  std::atomic<uintptr_t> end{0};
  std::array<char, 512> message{};
  std::atomic<size_t> message_bytes{0};
};

std::array<Range, 16> ranges;
struct sigaction previous;

void OnBusError(int signal, siginfo_t* info, void* context) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Range& range : ranges) {
    if (range.state.load() != 2 || at < range.first.load() || at >= range.end.load()) continue;
    [[maybe_unused]] const ssize_t ignored =
        ::write(STDERR_FILENO, range.message.data(), range.message_bytes.load());
    ::_exit(static_cast<int>(ExitCode::kBadData));
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    return previous.sa_sigaction(signal, info, context);
  }
  // The access is tried again and ends the process as it would have.
  ::sigaction(SIGBUS, &previous, nullptr);
}

void Install() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous);
  });
}

}  // namespace

BusErrorExplanation::BusErrorExplanation(const void* data, size_t bytes, const std::string& name) {
  Install();
  for (size_t i = 0; i < ranges.size(); ++i) {
    Range& range = ranges[i];
    int free = 0;
    if (!range.state.compare_exchange_strong(free, 1)) continue;
    const std::string text =
        absl::StrCat(name, " became shorter while it was in use; restore it and start again\n");
    const size_t length = std::min(text.size(), range.message.size());
    std::memcpy(range.message.data(), text.data(), length);
    range.message_bytes.store(length);
    range.first.store(reinterpret_cast<uintptr_t>(data));
    range.end.store(reinterpret_cast<uintptr_t>(data) + bytes);
    range.state.store(2);
    slot_ = static_cast<int>(i);
    return;
  }
}

BusErrorExplanation::~BusErrorExplanation() {
  if (slot_ >= 0) ranges[static_cast<size_t>(slot_)].state.store(0);
}

}  // namespace isotherm::shm
