#pragma once

#include "common/telemetry/telemetry_report.h"

namespace isotherm {

// Where a worker's reports go. Send is called by one thread and may block; Cancel by any.
class TelemetrySink {
 public:
  virtual ~TelemetrySink() = default;
  // False: it did not go out; whoever called keeps what is in it.
  virtual bool Send(const TelemetryReport& report) = 0;
  // Ends the Send under way and makes later ones fail.
  virtual void Cancel() = 0;
};

}  // namespace isotherm
