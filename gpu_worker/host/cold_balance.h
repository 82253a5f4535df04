#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace isotherm::gpu {

// How a layer's active cold neurons are shared with the cpu_worker: this side takes those with the
// highest ids, so many that both sides end at the same time. Learns from who ended last; a layer
// and a size of batch have a share of their own. Used by the thread that runs steps.
class ColdBalance {
 public:
  ColdBalance(int64_t num_layers, int64_t num_neurons);

  // The cut for rows whose active neurons are `active` ([num_rows, words]) and whose cold ones are
  // `cold` ([words]): this side computes the cold ids from it on. num_neurons: none; 0: all, they
  // are too few to be shared.
  int32_t Cut(int64_t layer, const uint64_t* active, int64_t num_rows, const uint64_t* cold) const;

  // What came of the cut. All in us, from the post on: when this side had done its own neurons, how
  // long it then waited (0: the result was there), and how long the cpu_worker computed.
  struct Outcome {
    float own_us = 0, wait_us = 0, cold_us = 0;
  };
  void Learn(int64_t layer, int64_t num_rows, const Outcome& outcome);

  // Of the active cold neurons, those taken by this side.
  float share(int64_t layer, int64_t num_rows) const { return StateOf(layer, num_rows).share; }

 private:
  struct State {
    float share = 0;
    float handoff_us = 0;  // from post to result, less the cpu_worker's computing; moving average
  };
  // One row, a batch of decoding sequences, a prompt: the costs differ too much for one share.
  static constexpr int64_t kSizes = 3;
  int64_t IndexOf(int64_t layer, int64_t num_rows) const;
  const State& StateOf(int64_t layer, int64_t num_rows) const {
    return states_[static_cast<size_t>(IndexOf(layer, num_rows))];
  }

  const int64_t num_neurons_;
  const int64_t words_;
  std::vector<State> states_;  // [num_layers, kSizes]
};

}  // namespace isotherm::gpu
