#include "placement_service/profile/expected_reads.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace isotherm {
namespace {

// A power for each of millions of neurons would take longer than the solution; a table does not.
class ShareTable {
 public:
  ShareTable(double rows, double tokens) {
    for (size_t i = 0; i <= kSteps; ++i) {
      const double p = static_cast<double>(i) / kSteps;
      const double smooth = (p * tokens + 1) / (tokens + 2);
      const double slope = rows * std::pow(1 - smooth, rows - 1);
      any_row_[i] = static_cast<float>(1 - std::pow(1 - p, rows));
      error_[i] = static_cast<float>(slope * std::sqrt(smooth * (1 - smooth) / (tokens + 2)));
    }
  }
  float AnyRow(float share) const { return At(any_row_, share); }
  float Error(float share) const { return At(error_, share); }

 private:
  static constexpr size_t kSteps = 1024;
  using Values = std::array<float, kSteps + 1>;
  static float At(const Values& values, float share) {
    const float place = std::clamp(share, 0.0f, 1.0f) * static_cast<float>(kSteps);
    const size_t below = std::min(kSteps - 1, static_cast<size_t>(place));
    const float part = place - static_cast<float>(below);
    return values[below] + part * (values[below + 1] - values[below]);
  }
  Values any_row_, error_;
};

}  // namespace

void ExpectedReads(const LiveProfile::Layer& layer, const ReadsOptions& options,
                   std::vector<float>* reads, std::vector<float>* error) {
  const ShareTable predicted(options.rows_per_step, layer.tokens);
  const ShareTable fired(options.rows_per_step, layer.fired_tokens);
  const auto first = static_cast<float>(options.first_row_bytes);
  const auto rest = static_cast<float>(options.rest_bytes);
  const size_t neurons = layer.predicted.size();
  reads->resize(neurons);
  error->resize(neurons);
  for (size_t n = 0; n < neurons; ++n) {
    const float p = layer.predicted[n], f = layer.fired[n];
    (*reads)[n] = first * predicted.AnyRow(p) + rest * fired.AnyRow(f);
    // Both rest on the same rows, so their errors go the same way.
    (*error)[n] = first * predicted.Error(p) + rest * fired.Error(f);
  }
}

}  // namespace isotherm
