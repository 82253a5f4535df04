#pragma once

#include <chrono>
#include <cstdint>

namespace isotherm {

// Time source that tests replace. Now() is monotonic, for deadlines; WallUs() is for records.
class Clock {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  virtual ~Clock() = default;
  virtual TimePoint Now() const { return std::chrono::steady_clock::now(); }
  virtual int64_t WallUs() const {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  static const Clock& Real() {
    static const Clock clock;
    return clock;
  }
};

}  // namespace isotherm
