#pragma once

#include <cstdint>
#include <vector>

namespace isotherm {

// Numbers of the gpu_worker's KV pages, of which those below a limit may be taken. The lowest are
// taken first, so that the high ones, which are lent, come back soon. free() + what callers hold ==
// total(), always. One thread.
class PagePool {
 public:
  PagePool() = default;
  // `most`: that there can ever be.
  explicit PagePool(int32_t most) : PagePool(most, most) {}
  PagePool(int32_t most, int32_t limit);

  int32_t most() const { return static_cast<int32_t>(held_.size()); }
  int32_t total() const { return free() + num_held_; }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  // No page from here on is held or may be taken.
  int32_t top() const;

  // From now on only pages below `limit` (within most()) are taken; held ones above it stay until
  // they are returned.
  void SetLimit(int32_t limit);
  // Appends `count` pages to `pages`, or does nothing and returns false if fewer are free.
  bool Take(int32_t count, std::vector<int32_t>& pages);
  // Takes back every page of `pages` and empties it. Aborts on a page that is free already.
  void Return(std::vector<int32_t>& pages);

 private:
  void AddFree(int32_t page);

  int32_t limit_ = 0;
  int32_t num_held_ = 0;
  std::vector<int32_t> free_;  // a heap, the lowest first
  std::vector<bool> held_;
};

}  // namespace isotherm
