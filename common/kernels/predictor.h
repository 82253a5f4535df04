#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace isotherm {

// values = max(values, 0) in place; NaN stays NaN. The activation between a predictor's layers.
void Relu(std::span<float> values);

// Which neurons are active: bit n of row r is set when !(scores[r, n] < threshold), so a NaN score
// computes its neuron rather than losing it.
// scores: [num_rows, num_neurons] f32, rows `stride` elements apart.
// bitmap: [num_rows, ceil(num_neurons / 64)], overwritten; bits from num_neurons on are zero.
struct ThresholdParams {
  const float* scores = nullptr;
  int64_t stride = 0;
  int64_t num_rows = 0;
  int64_t num_neurons = 0;
  float threshold = 0;
  uint64_t* bitmap = nullptr;
};

// InvalidArgument when shapes disagree.
absl::Status ScoresToBitmap(const ThresholdParams& params);

// The same for words [first_word, last_word) of every row, for use inside a running section; the
// params are valid.
void ScoresToBitmapWords(const ThresholdParams& params, int64_t first_word, int64_t last_word);

}  // namespace isotherm
