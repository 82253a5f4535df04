#include "common/shm/peer_watch.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace isotherm::shm {
namespace {

using std::chrono::steady_clock;

// True when the other end is closed or broke the rule that nothing is sent.
bool ConnectionEnded(int fd) {
  char byte;
  const ssize_t got = ::recv(fd, &byte, 1, MSG_DONTWAIT);
  return got >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

}  // namespace

PeerWatch::PeerWatch(UniqueFd liveness, ControlRegion& region, Callbacks callbacks,
                     const PeerWatchOptions& options)
    : liveness_(std::move(liveness)),
      region_(region),
      callbacks_(std::move(callbacks)),
      options_(options),
      stop_event_(::eventfd(0, EFD_CLOEXEC)) {
  ISOTHERM_CHECK(stop_event_.valid());
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "peer-watch");
    Loop();
  });
}

PeerWatch::~PeerWatch() {
  const uint64_t one = 1;
  ISOTHERM_CHECK(::write(stop_event_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
}

bool PeerWatch::StopRequested(std::chrono::milliseconds wait) {
  pollfd fd{stop_event_.get(), POLLIN, 0};
  return ::poll(&fd, 1, static_cast<int>(wait.count())) > 0;
}

void PeerWatch::Die(const std::string& why) {
  state_.store(PeerState::kDead, std::memory_order_release);
  callbacks_.on_dead(absl::UnavailableError(absl::StrCat("the other worker is gone: ", why)));
  // Past the longest futex round every waiter has looked by itself.
  for (int i = 0; i < 25; ++i) {
    if (callbacks_.wake) callbacks_.wake();
    if (StopRequested(std::chrono::milliseconds(1))) return;
  }
}

void PeerWatch::Loop() {
  uint64_t beat = 0;
  uint64_t peer_beat = region_.peer_words().heartbeat.load(std::memory_order_relaxed);
  auto changed = steady_clock::now();
  auto last_look = changed;
  while (true) {
    region_.own_words().heartbeat.store(++beat, std::memory_order_relaxed);
    std::array<pollfd, 2> fds = {{{liveness_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
    const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(options_.beat.count()));
    if (ready > 0 && fds[1].revents != 0) return;
    if (ready > 0 && fds[0].revents != 0 && ConnectionEnded(liveness_.get())) {
      return Die("its connection closed");
    }
    const auto now = steady_clock::now();
    const uint64_t seen = region_.peer_words().heartbeat.load(std::memory_order_relaxed);
    // We slept ourselves (stopped, suspended, starved): what we missed says nothing of the peer.
    const bool overslept = now - last_look >= options_.suspect;
    last_look = now;
    if (seen != peer_beat || overslept) {
      peer_beat = seen;
      changed = now;
      state_.store(PeerState::kAlive, std::memory_order_release);
      continue;
    }
    if (now - changed >= options_.dead) {
      return Die(absl::StrCat("no heartbeat for ", options_.dead.count(), " ms"));
    }
    if (now - changed >= options_.suspect) {
      state_.store(PeerState::kSuspect, std::memory_order_release);
    }
  }
}

}  // namespace isotherm::shm
