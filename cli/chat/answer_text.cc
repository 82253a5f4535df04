#include "cli/chat/answer_text.h"

#include <nlohmann/json.hpp>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace isotherm::cli {
namespace {

std::string ForTerminal(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

}  // namespace

bool AnswerPrinter::OnText(absl::string_view text) {
  text_.append(text.data(), text.size());
  if (silent_) return true;
  console_.out << (console_.out_is_terminal ? ForTerminal(text) : std::string(text)) << std::flush;
  return console_.out.good();
}

void AnswerPrinter::Finish() {
  if (silent_ || text_.empty() || text_.back() == '\n') return;
  console_.out << "\n" << std::flush;
}

std::string StatsLine(const GenerateStats& stats) {
  std::string line = absl::StrFormat(
      "%d tokens, %.1f tokens/s, first after %.2f s, %d prompt tokens, %.0f %% of the active "
      "neurons hot",
      stats.completion_tokens, stats.TokensPerSecond(), stats.time_to_first_token_ms / 1000.0,
      stats.prompt_tokens, 100 * stats.gpu_hit_share);
  if (stats.finish_reason == "length") absl::StrAppend(&line, "; cut at --max-tokens");
  return line;
}

std::string StatsJson(const GenerateStats& stats) {
  nlohmann::ordered_json json;
  json["finish_reason"] = stats.finish_reason;
  json["prompt_tokens"] = stats.prompt_tokens;
  json["completion_tokens"] = stats.completion_tokens;
  json["tokens_per_second"] = stats.TokensPerSecond();
  json["queue_ms"] = stats.queue_ms;
  json["prefill_ms"] = stats.prefill_ms;
  json["time_to_first_token_ms"] = stats.time_to_first_token_ms;
  json["decode_ms"] = stats.decode_ms;
  json["gpu_hit_share"] = stats.gpu_hit_share;
  json["epoch"] = stats.epoch;
  return json.dump();
}

}  // namespace isotherm::cli
