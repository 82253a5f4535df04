#pragma once

#include <string>

#include "cli/client/inference_client.h"
#include "cli/ui/console.h"

namespace isotherm::cli {

// Writes an answer to stdout as it comes and keeps it. On a terminal control bytes of the model are
// shown escaped. A closed stdout ends the request.
class AnswerPrinter final : public TextSink {
 public:
  AnswerPrinter(Console& console, bool silent) : console_(console), silent_(silent) {}
  bool OnText(absl::string_view text) override;
  // Ends the last line.
  void Finish();
  const std::string& text() const { return text_; }

 private:
  Console& console_;
  bool silent_;
  std::string text_;
};

// "42 tokens, 61.3 tokens/s, first after 0.21 s, 14 prompt tokens, 37 % of active neurons hot"
std::string StatsLine(const GenerateStats& stats);
std::string StatsJson(const GenerateStats& stats);

}  // namespace isotherm::cli
