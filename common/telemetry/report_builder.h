#pragma once

#include <cstdint>
#include <string>

#include "common/telemetry/neuron_counters.h"
#include "common/telemetry/telemetry_report.h"

namespace isotherm {

// Makes reports of a worker's running totals. Used by one thread.
class ReportBuilder {
 public:
  ReportBuilder(std::string instance_id, std::string model_digest)
      : instance_id_(std::move(instance_id)), model_digest_(std::move(model_digest)) {}

  // What `now` has beyond the last report that was sent; the interval since then is the caller's.
  TelemetryReport Build(const NeuronCounters& now, int64_t interval_us) const;
  // The report of `now` was sent: the next one starts from there.
  void Sent(const NeuronCounters& now);

 private:
  const std::string instance_id_, model_digest_;
  int64_t next_sequence_ = 1;
  NeuronCounters last_;  // empty before the first
};

}  // namespace isotherm
