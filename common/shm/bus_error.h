#pragma once

#include <cstddef>
#include <string>

namespace isotherm::shm {

// While it lives, a bus error at an address of the range (an access past the end of a mapped file
// that became shorter) ends the process with exit code 65 and a line on stderr that names the file.
// All other bus errors go where they went before. At most 16 at a time; more are not explained.
class BusErrorExplanation {
 public:
  BusErrorExplanation(const void* data, size_t bytes, const std::string& name);
  ~BusErrorExplanation();
  BusErrorExplanation(const BusErrorExplanation&) = delete;
  BusErrorExplanation& operator=(const BusErrorExplanation&) = delete;

 private:
  int slot_ = -1;
};

}  // namespace isotherm::shm
