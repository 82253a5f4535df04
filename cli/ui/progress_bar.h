#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/ui/console.h"
#include "common/base/clock.h"

namespace isotherm::cli {

// Progress of one job of known size. On a terminal one line drawn over itself: share, bytes, MB/s,
// time left; otherwise one line each 10 %. One thread.
class ProgressBar {
 public:
  ProgressBar(Console& console, std::string label, int64_t total_bytes,
              const Clock& clock = Clock::Real());
  // Ends the line if one is being drawn.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Never goes back. Redraws at most 20 times a second.
  void Update(int64_t done_bytes);
  void UpdateShare(double share);
  void Finish();
  // Takes the drawn line away so that another may be printed; the next Update draws it again.
  void Hide();

 private:
  void Draw(Clock::TimePoint now);
  void PrintTenth();
  std::string Describe(Clock::TimePoint now) const;

  Console& console_;
  std::string label_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  const Clock& clock_;
  Clock::TimePoint start_;
  Clock::TimePoint last_draw_;
  int last_tenth_ = 0;
  bool drawn_ = false;
  bool finished_ = false;
};

// "4 s", "2 min 10 s", "1 h 5 min".
std::string FormatSeconds(double seconds);

}  // namespace isotherm::cli
