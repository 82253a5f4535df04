#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::cli {

// Cuts a byte stream into lines (without the newline). A line over kMaxLineBytes is cut there: a
// child cannot make its parent buffer without bound.
class LineBuffer {
 public:
  static constexpr size_t kMaxLineBytes = 16 << 10;
  using OnLine = std::function<void(absl::string_view line)>;

  void Append(absl::string_view bytes, const OnLine& on_line);
  // Hands over what came without a last newline.
  void Finish(const OnLine& on_line);

 private:
  std::string partial_;
};

}  // namespace isotherm::cli
