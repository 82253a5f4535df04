#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Construct first in main(), before any thread: blocks SIGTERM, SIGINT and SIGHUP in every thread
// to come and ignores SIGPIPE. A second signal after the first ends the process at once (exit 130).
class ShutdownSignal {
 public:
  ShutdownSignal();
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // Blocks until a signal arrives or Trigger() is called. Returns the signal, 0 for Trigger().
  int Wait();
  // Ends Wait() from another thread, for example after a sticky fault.
  void Trigger();

 private:
  int trigger_fd_ = -1;
};

// The kernel kills this process (SIGKILL: a drain could last minutes) when the thread that started
// it ends: a supervised service never outlives `isotherm serve`. Returns false when the parent is
// gone already.
bool DieWithParent();

// Binds every thread of this process, and those to come, to CPUs such as "0-3,8". Nothing happens
// for "". InvalidArgument when that is no such list, or none of it may be used.
absl::Status ConfineProcess(absl::string_view cpus);

// Lines on stdout for whoever started the process: "listening ADDRESS", then "ready" once it
// serves.
void AnnounceListening(absl::string_view address);
void AnnounceReady();
// "progress 0.42" while loading.
void AnnounceProgress(double share);

// Logs a failure and returns the process's exit code; 0 for OK.
int ExitWith(const absl::Status& status);

// 128 random bits in hex.
std::string RandomId();

}  // namespace isotherm
