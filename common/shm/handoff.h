#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/unique_fd.h"
#include "common/shm/process_identity.h"

namespace isotherm::shm {

// 128 random bits in hex, valid for one connection.
inline constexpr int kHandoffTokenChars = 32;

// What the connection carries: the two descriptors, then nothing. It stays open for as long as both
// sides live, and its end tells either side of the other's.
struct Handoff {
  UniqueFd arena;
  UniqueFd control;
  UniqueFd connection;
  // The other end, for ControlRegion::Expected::creator. All zero unless it lives in our PID
  // namespace, where its pid means the same to both.
  ProcessIdentity peer;
};

// Listens on a 0600 Unix socket of its own random name and gives descriptors to whoever is of our
// user and shows the token of the offer that stands. Thread-safe; its thread is "shm-handoff".
class HandoffServer {
 public:
  // On the handoff thread, with the connection of a taker; must not block.
  using Taken = std::function<void(UniqueFd connection, pid_t peer_pid)>;

  // InvalidArgument when `directory` is not there or not writable, or the path longer than a
  // socket's may be.
  static absl::StatusOr<std::unique_ptr<HandoffServer>> Start(const std::string& directory);
  ~HandoffServer();

  const std::string& path() const { return path_; }

  // Replaces an offer that nobody took. Returns the token.
  std::string Offer(UniqueFd arena, UniqueFd control, Taken taken);
  void Withdraw();

 private:
  struct Standing {
    std::string token;
    UniqueFd arena;
    UniqueFd control;
    Taken taken;
  };
  HandoffServer(UniqueFd listener, UniqueFd stop, std::string path);
  void Loop();
  void Serve(UniqueFd connection);

  const UniqueFd listener_;
  const UniqueFd stop_event_;
  const std::string path_;
  absl::Mutex mu_;
  std::unique_ptr<Standing> standing_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // declared last: joined before what it reads goes
};

// Takes an offer. PermissionDenied when another user owns the other end, or the token is not
// that of the standing offer; Unavailable when nobody listens or answers within `timeout`.
absl::StatusOr<Handoff> TakeHandoff(const std::string& path, absl::string_view token,
                                    std::chrono::milliseconds timeout);

}  // namespace isotherm::shm
