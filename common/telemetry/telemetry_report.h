#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/telemetry/neuron_counters.h"

namespace isotherm {

struct LayerTelemetry {
  LayerCounters counts;             // since the last report
  std::vector<uint32_t> predicted;  // [num_neurons]; empty: all zero
  std::vector<uint32_t> fired;      // likewise
};

// What a worker counted since its last report. A report that could not be sent is part of the next
// one; one that was sent and lost leaves a gap in the sequence.
struct TelemetryReport {
  std::string instance_id;
  std::string model_digest;
  int64_t sequence = 0;  // from 1, one more each time
  int64_t interval_us = 0;
  int64_t epoch = 0;           // of the last step
  uint64_t epoch_changes = 0;  // 0: all steps ran under `epoch`
  uint64_t steps = 0, decode_steps = 0, decode_rows = 0;
  int64_t num_neurons = 0;             // of a layer
  std::vector<LayerTelemetry> layers;  // [num_layers]; empty: no step ran
};

}  // namespace isotherm
