#include "bench/probe/line.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

namespace isotherm::probe {

struct Line::Fields {
  nlohmann::ordered_json json;
};

Line::Line(std::string_view figure) : fields_(std::make_unique<Fields>()) { Set("figure", figure); }

Line::~Line() {
  const std::string text =
      fields_->json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  // One write of a short line to a file opened for appending stays whole.
  for (size_t at = 0; at < text.size();) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data() + at, text.size() - at);
    if (written <= 0) return;
    at += static_cast<size_t>(written);
  }
}

Line& Line::Set(std::string_view key, double value) {
  fields_->json[std::string(key)] = value;
  return *this;
}
Line& Line::Set(std::string_view key, int64_t value) {
  fields_->json[std::string(key)] = value;
  return *this;
}
Line& Line::Set(std::string_view key, bool value) {
  fields_->json[std::string(key)] = value;
  return *this;
}
Line& Line::Set(std::string_view key, std::string_view value) {
  fields_->json[std::string(key)] = value;
  return *this;
}
Line& Line::Set(std::string_view key, const std::vector<int>& values) {
  fields_->json[std::string(key)] = values;
  return *this;
}
Line& Line::Set(std::string_view key, const std::vector<std::string>& values) {
  fields_->json[std::string(key)] = values;
  return *this;
}

}  // namespace isotherm::probe
