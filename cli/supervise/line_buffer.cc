#include "cli/supervise/line_buffer.h"

#include <algorithm>

namespace isotherm::cli {

void LineBuffer::Append(absl::string_view bytes, const OnLine& on_line) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const size_t room = kMaxLineBytes - partial_.size();
    const size_t taken = std::min({newline, bytes.size(), room});
    partial_.append(bytes.data(), taken);
    const bool ended = taken == newline;
    bytes.remove_prefix(taken + (ended ? 1 : 0));
    if (ended || partial_.size() == kMaxLineBytes) {
      on_line(partial_);
      partial_.clear();
    }
  }
}

void LineBuffer::Finish(const OnLine& on_line) {
  if (partial_.empty()) return;
  on_line(partial_);
  partial_.clear();
}

}  // namespace isotherm::cli
