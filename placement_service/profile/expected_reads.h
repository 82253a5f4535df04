#pragma once

#include <vector>

#include "placement_service/profile/live_profile.h"

namespace isotherm {

struct ReadsOptions {
  double first_row_bytes = 0;  // read of each neuron that is named
  double rest_bytes = 0;       // read where it fires
  double rows_per_step = 1;    // of the batch; a neuron is read once for all of them
};

// Bytes that a decode step is expected to read of each of a layer's neurons,
//   first * (1 - (1 - predicted)^rows) + rest * (1 - (1 - fired)^rows),
// and the standard error of that: binomial at the layer's sample size, with one firing and one miss
// more than were seen, so that a rare neuron is not believed to be a dead one.
void ExpectedReads(const LiveProfile::Layer& layer, const ReadsOptions& options,
                   std::vector<float>* reads, std::vector<float>* error);

}  // namespace isotherm
