#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "common/base/unique_fd.h"

namespace isotherm::shm {

// A process forked from the test. The two ends of a socket pair stand for the handoff's connection;
// a second pair carries single bytes by which the two agree on when to go on.
class ForkedPeer {
 public:
  struct Ends {
    UniqueFd liveness;
    int signals = -1;
    void Say(char byte) const { (void)!::write(signals, &byte, 1); }
    char Hear() const {
      char byte = 0;
      return ::read(signals, &byte, 1) == 1 ? byte : '\0';
    }
  };

  // Fork before the test starts a thread. `body` runs in the child.
  explicit ForkedPeer(const std::function<void(Ends&)>& body) {
    int liveness[2];
    int signals[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, liveness), 0);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, signals), 0);
    pid_ = ::fork();
    const bool child = pid_ == 0;
    ::close(liveness[child ? 0 : 1]);
    ::close(signals[child ? 0 : 1]);
    ends_.liveness = UniqueFd(liveness[child ? 1 : 0]);
    ends_.signals = signals[child ? 1 : 0];
    if (child) {
      ::alarm(60);  // never outlives a test that fails
      body(ends_);
      ::_exit(0);
    }
  }
  ~ForkedPeer() {
    Signal(SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(ends_.signals);
  }

  void Signal(int signal) const { ::kill(pid_, signal); }
  Ends& ends() { return ends_; }

 private:
  pid_t pid_ = -1;
  Ends ends_;
};

}  // namespace isotherm::shm
