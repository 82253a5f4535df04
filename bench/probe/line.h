#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace isotherm::probe {

// One JSON object on one line of stdout, written at once when it goes out of scope. Pimpl: the JSON
// library is too much for a CUDA compiler to read in each file.
class Line {
 public:
  explicit Line(std::string_view figure);
  ~Line();
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  Line& Set(std::string_view key, double value);
  Line& Set(std::string_view key, int64_t value);
  Line& Set(std::string_view key, int value) { return Set(key, int64_t{value}); }
  Line& Set(std::string_view key, bool value);
  Line& Set(std::string_view key, std::string_view value);
  Line& Set(std::string_view key, const char* value) { return Set(key, std::string_view(value)); }
  Line& Set(std::string_view key, const std::vector<int>& values);
  Line& Set(std::string_view key, const std::vector<std::string>& values);

 private:
  struct Fields;
  std::unique_ptr<Fields> fields_;
};

}  // namespace isotherm::probe
