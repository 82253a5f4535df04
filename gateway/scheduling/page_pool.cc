#include "gateway/scheduling/page_pool.h"

#include "common/base/check.h"

namespace isotherm {

PagePool::PagePool(int32_t total) : total_(total), held_(static_cast<size_t>(total), false) {
  free_.reserve(held_.size());
  for (int32_t page = total - 1; page >= 0; --page) free_.push_back(page);
}

bool PagePool::Take(int32_t count, std::vector<int32_t>& pages) {
  if (count > free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t page = free_.back();
    free_.pop_back();
    held_[static_cast<size_t>(page)] = true;
    pages.push_back(page);
  }
  return true;
}

void PagePool::Return(std::vector<int32_t>& pages) {
  for (const int32_t page : pages) {
    ISOTHERM_CHECK(held_[static_cast<size_t>(page)]);
    held_[static_cast<size_t>(page)] = false;
    free_.push_back(page);
  }
  pages.clear();
}

}  // namespace isotherm
