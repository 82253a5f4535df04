#pragma once

#include <cstdint>
#include <vector>

namespace isotherm {

// Numbers of the gpu_worker's KV pages. free() + what callers hold == total(), always. One thread.
class PagePool {
 public:
  PagePool() = default;
  explicit PagePool(int32_t total);

  int32_t total() const { return total_; }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }

  // Appends `count` pages to `pages`, or does nothing and returns false if fewer are free.
  bool Take(int32_t count, std::vector<int32_t>& pages);
  // Takes back every page of `pages` and empties it. Aborts on a page that is free already.
  void Return(std::vector<int32_t>& pages);

 private:
  int32_t total_ = 0;
  std::vector<int32_t> free_;  // a stack: the page freed last is likely in cache
  std::vector<bool> held_;
};

}  // namespace isotherm
