#pragma once

#include <cstdint>

#include "common/telemetry/telemetry_report.h"
#include "placement_service/solver/solve_placement.h"

namespace isotherm {

// What a decode step's layers cost on this machine, fitted to what workers report: time against
// bytes over layers and seconds, by least squares, older reports counting less. Not thread-safe.
class CostEstimator {
 public:
  void AddGpuReport(const TelemetryReport& report);
  void AddCpuReport(const TelemetryReport& report);

  // Whether both sides were timed often enough.
  bool known() const;
  // Nanoseconds; without a budget. Tier 3's part of the cold bytes, which the GPU reads beside the
  // CPU, is taken off the cost of a cold byte. Only when known().
  SolveBin costs() const;
  // Mean rows of a decode step; 1 before there was one.
  double rows_per_step() const;
  // What the layers of a decode step took, summed, nanoseconds; 0 before there was one.
  double step_ns() const { return step_weight_ > 0 ? step_ns_ / step_weight_ : 0; }

 private:
  // y = fixed + per_byte * x, both at least 0.
  class Line {
   public:
    void Age(double keep);
    void Add(double weight, double x, double y);
    double weight() const { return w_; }
    double fixed() const;
    double per_byte() const;

   private:
    double w_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
  };

  Line hot_, cold_;
  double handoff_ns_ = 0, handoff_weight_ = 0;
  double merge_ns_ = 0, merge_weight_ = 0;
  double gpu_cold_bytes_ = 0, cpu_cold_bytes_ = 0;
  double decode_rows_ = 0, decode_steps_ = 0;
  double step_ns_ = 0, step_weight_ = 0;
};

}  // namespace isotherm
