#pragma once

#include <cstdint>
#include <limits>
#include <span>

namespace isotherm {

// Passes over the values of a layer in vector registers: at millions of neurons they are most of
// what a solution takes. Written in Highway, compiled for every instruction set. Sums are taken of
// floats over 1,024 values, of doubles from there on.

struct WindowScan {
  double sum = 0;        // of all values; not finite if one of them is not
  double above_sum = 0;  // of those above the window
};

// Splits the values at a window. above[n / 64] gets a bit where values[n] > high, within[n / 64]
// where low <= values[n] <= high; both have ceil(values / 64) words, no bit past the end.
WindowScan ScanWindow(std::span<const float> values, float low, float high, uint64_t* above,
                      uint64_t* within);

struct HotSum {
  double sum = 0;  // of all values; not finite if one of them is not
  double hot = 0;  // of those whose bit is set
  float least = std::numeric_limits<float>::infinity();  // of the values that are numbers
};

// `hot`: ceil(values / 64) words.
HotSum SumHot(std::span<const float> values, const uint64_t* hot);

}  // namespace isotherm
