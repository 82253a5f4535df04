#include "gateway/scheduling/page_pool.h"

#include <algorithm>
#include <functional>

#include "common/base/check.h"

namespace isotherm {

PagePool::PagePool(int32_t most, int32_t limit) : held_(static_cast<size_t>(most), false) {
  free_.reserve(held_.size());
  SetLimit(limit);
}

int32_t PagePool::top() const {
  int32_t top = most();
  while (top > limit_ && !held_[static_cast<size_t>(top - 1)]) --top;
  return top;
}

void PagePool::AddFree(int32_t page) {
  free_.push_back(page);
  std::push_heap(free_.begin(), free_.end(), std::greater<>());
}

void PagePool::SetLimit(int32_t limit) {
  limit = std::clamp(limit, 0, most());
  for (int32_t page = limit_; page < limit; ++page) {
    if (!held_[static_cast<size_t>(page)]) AddFree(page);
  }
  if (limit < limit_) {
    std::erase_if(free_, [limit](int32_t page) { return page >= limit; });
    std::make_heap(free_.begin(), free_.end(), std::greater<>());
  }
  limit_ = limit;
}

bool PagePool::Take(int32_t count, std::vector<int32_t>& pages) {
  if (count > free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    std::pop_heap(free_.begin(), free_.end(), std::greater<>());
    const int32_t page = free_.back();
    free_.pop_back();
    held_[static_cast<size_t>(page)] = true;
    ++num_held_;
    pages.push_back(page);
  }
  return true;
}

void PagePool::Return(std::vector<int32_t>& pages) {
  for (const int32_t page : pages) {
    ISOTHERM_CHECK(held_[static_cast<size_t>(page)]);
    held_[static_cast<size_t>(page)] = false;
    --num_held_;
    if (page < limit_) AddFree(page);
  }
  pages.clear();
}

}  // namespace isotherm
