#pragma once

#include <cstdint>
#include <vector>

#include "common/step/step.h"

namespace isotherm {

// Running totals of one layer. What concerns time is summed over `timed_steps` only; divided by
// them it is what a decode step spends in the layer.
struct LayerCounters {
  uint64_t tokens = 0;        // rows whose active set was predicted (without predictor: every row);
                              // cpu_worker: rows it had work for
  uint64_t exact_tokens = 0;  // rows that ran with every neuron active although there is one
  uint64_t timed_steps = 0;   // decode steps with the times below; a device may time a sample
  uint64_t gpu_ns = 0;        // hot neurons
  uint64_t cpu_ns = 0;        // the cpu_worker's own time, as it reported it
  uint64_t wait_ns = 0;       // from the end of the hot neurons to the cpu_worker's answer
  uint64_t merge_ns = 0;      // sums and residual
  uint64_t hot_bytes = 0;     // of hot bundles read, in timed steps
  uint64_t timed_cold_bytes = 0;  // of cold bundles that this side read, in timed steps
  uint64_t cold_bytes = 0;        // the same in all steps
};

// Everything a worker has counted since its start. Totals never go back; 32-bit ones wrap, so that
// a reader subtracts its last copy modulo 2^32: at a thousand firings a millisecond a word lasts
// more than an hour, a reader comes once a second. Nothing is counted for a step that failed before
// it reached the neuron; what it did count stays.
struct NeuronCounters {
  int64_t epoch = kBuiltInEpoch;  // of the last step
  uint64_t epoch_changes = 0;     // steps whose epoch was not the one before's
  uint64_t steps = 0;
  uint64_t decode_steps = 0;          // gpu_worker: steps in which every row sampled
  uint64_t decode_rows = 0;           // rows of those steps
  std::vector<LayerCounters> layers;  // [num_layers]
  // gpu_worker: rows of `tokens` for which the predictor named the neuron, hot or cold. Empty on a
  // cpu_worker.
  std::vector<uint32_t> predicted;  // [num_layers * num_neurons]
  // Rows, exact ones too, for which this side computed the neuron and its gate was open.
  std::vector<uint32_t> fired;  // [num_layers * num_neurons]
};

}  // namespace isotherm
