#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::chat {

// A string of which each byte knows whether a template or a user wrote it. The mark goes with the
// byte through every operation, so that a user's text can never pass for the template's.
class Text {
 public:
  Text() = default;
  Text(absl::string_view bytes, bool trusted)
      : bytes_(bytes), marks_(bytes.size(), trusted ? kTrusted : kUser) {}

  absl::string_view bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool trusted(size_t at) const { return marks_[at] == kTrusted; }
  // False as soon as one byte is a user's.
  bool all_trusted() const { return marks_.find(kUser) == std::string::npos; }

  void Append(const Text& other) {
    bytes_ += other.bytes_;
    marks_ += other.marks_;
  }
  void Append(absl::string_view bytes, bool trusted) {
    bytes_.append(bytes.data(), bytes.size());
    marks_.append(bytes.size(), trusted ? kTrusted : kUser);
  }
  // Bytes [begin, end) of `other`.
  void AppendRange(const Text& other, size_t begin, size_t end) {
    bytes_.append(other.bytes_, begin, end - begin);
    marks_.append(other.marks_, begin, end - begin);
  }
  Text Range(size_t begin, size_t end) const {
    Text out;
    out.AppendRange(*this, begin, end);
    return out;
  }
  // Replaces each byte by map(byte), keeping its mark.
  template <typename Map>
  Text Mapped(Map map) const {
    Text out = *this;
    for (char& byte : out.bytes_) byte = map(byte);
    return out;
  }

 private:
  static constexpr char kTrusted = 1;
  static constexpr char kUser = 0;
  std::string bytes_;
  std::string marks_;  // one mark per byte
};

}  // namespace isotherm::chat
