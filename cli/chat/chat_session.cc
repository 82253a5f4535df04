#include "cli/chat/chat_session.h"

#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/chat/answer_text.h"
#include "cli/ui/remedy.h"
#include "common/base/error_reason.h"
#include "common/process/service_process.h"

namespace isotherm::cli {

ChatSession::ChatSession(InferenceClient& client, Console& console, GenerateParams params,
                         std::string system, bool json)
    : client_(client),
      console_(console),
      params_(std::move(params)),
      system_(std::move(system)),
      json_(json) {
  Reset();
}

ChatSession::Next ChatSession::HandleLine(absl::string_view line) {
  line = absl::StripAsciiWhitespace(line);
  if (line.empty()) return Next::kGoOn;
  if (line.front() != '/') {
    Ask(line);
    return Next::kGoOn;
  }
  if (line == "/exit" || line == "/quit") return Next::kExit;
  if (line == "/reset") {
    Reset();
    PrintNote(console_, "the conversation starts anew");
  } else if (line == "/stats") {
    PrintStats();
  } else {
    PrintNote(console_,
              "/reset forgets the conversation, /stats shows figures, /exit ends; Ctrl-C "
              "stops an answer");
  }
  return Next::kGoOn;
}

void ChatSession::Reset() {
  history_.clear();
  if (!system_.empty()) history_.push_back({"system", system_});
}

void ChatSession::Ask(absl::string_view question) {
  GenerateParams params = params_;
  params.request_id = RandomId();
  history_.push_back({"user", std::string(question)});
  params.turns = history_;
  AnswerPrinter printer(console_, /*silent=*/json_);
  const absl::StatusOr<GenerateStats> stats = client_.Generate(params, printer);
  printer.Finish();
  const bool stopped = absl::IsCancelled(stats.status());
  if (!stats.ok() && !stopped) {
    history_.pop_back();
    last_status_ = stats.status();
    const auto reason = ErrorReasonOf(last_status_);
    if (reason.has_value() && reason->reason == "CONTEXT_LENGTH_EXCEEDED") {
      last_status_ = WithTry(last_status_, "/reset, or a larger --context");
    }
    PrintError(console_, last_status_);
    return;
  }
  last_status_ = absl::OkStatus();
  history_.push_back({"assistant", printer.text()});
  if (json_) PrintAnswerJson(printer.text(), stats.ok() ? &*stats : nullptr);
  if (stopped) {
    PrintNote(console_, "stopped");
    return;
  }
  last_ = *stats;
  ++num_answers_;
  total_tokens_ += stats->completion_tokens;
  total_decode_ms_ += stats->decode_ms;
}

void ChatSession::PrintAnswerJson(const std::string& answer, const GenerateStats* stats) {
  nlohmann::ordered_json json;
  json["role"] = "assistant";
  json["content"] = answer;
  json["stopped"] = stats == nullptr;
  if (stats != nullptr) json["stats"] = nlohmann::ordered_json::parse(StatsJson(*stats));
  console_.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n"
               << std::flush;
}

void ChatSession::PrintStats() {
  if (num_answers_ == 0) {
    PrintNote(console_, "no answer yet");
    return;
  }
  PrintNote(console_, absl::StrCat("last answer: ", StatsLine(last_)));
  const double rate = total_decode_ms_ > 0 ? static_cast<double>(total_tokens_ - num_answers_) *
                                                 1000.0 / total_decode_ms_
                                           : 0;
  PrintNote(console_, absl::StrFormat("all %d answers: %d tokens, %.1f tokens/s; %d messages kept",
                                      num_answers_, total_tokens_, rate, history_.size()));
}

}  // namespace isotherm::cli
