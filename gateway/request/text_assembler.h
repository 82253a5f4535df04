#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace isotherm {

// Joins the bytes of one choice's tokens into text that may be sent: whole UTF-8 characters, and
// nothing that may turn out to be the beginning of a stop string. How the bytes were cut into
// tokens makes no difference: the stop string that is complete first ends the text (the longer one,
// if two end at the same byte). One thread.
class TextAssembler {
 public:
  // include_stop: the stop string that ends the text is part of it.
  TextAssembler(std::vector<std::string> stops, bool include_stop);

  struct Output {
    std::string text;  // what can be sent now
    std::optional<std::string> matched_stop;
  };
  // may_stop false: these bytes are no part of a stop string. After a match append nothing more.
  Output Append(absl::string_view bytes, bool may_stop);
  // The text ends without a stop string: what was held back for one. A character that never became
  // whole is dropped.
  std::string Finish();

 private:
  size_t HeldSuffix() const;

  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::string partial_;  // an incomplete character, at most 3 bytes
  std::string held_;     // whole characters not sent yet
};

}  // namespace isotherm
