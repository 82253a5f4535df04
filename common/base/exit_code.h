#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Exit codes of every binary; documented in docs/operations.md. `serve` does not restart a process
// that ended with kUsage, kBadData or kCannotFit.
enum class ExitCode : int {
  kOk = 0,            // all work finished
  kUsage = 64,        // flags
  kBadData = 65,      // missing or bad model or plan
  kUnavailable = 69,  // a client verb's service is unreachable or answered with an error
  kInternal = 70,     // broken invariant or sticky device error
  kShortage = 71,     // resource short now: memory, VRAM, a port in use
  kDrainCut = 75,     // drain cut work
  kCannotFit = 78,    // can never fit this machine
};

// A start-up failure carries its exit code as a status payload, so that the place that knows the
// cause chooses the code and main() only reads it.
absl::Status WithExitCode(absl::Status status, ExitCode code);

// DataLoss with kBadData: "<where>: <what>". `where` is the file, or what of the store is bad.
absl::Status BadDataError(absl::string_view where, absl::string_view what);

// The payload's code, else one derived from the status code: InvalidArgument 64, NotFound and
// DataLoss 65, Unavailable 69, ResourceExhausted 71, anything else 70; OK 0.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace isotherm
