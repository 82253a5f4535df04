#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "cli/client/inference_client.h"
#include "cli/ui/console.h"

namespace isotherm::cli {

// A conversation: history, commands, answers to the console as they come. A failed question leaves
// the history as it was; a stopped answer stays in it as far as it came. One thread.
class ChatSession {
 public:
  enum class Next { kGoOn, kExit };

  // `params`: sampling of every answer. `system`: first message, "" for none. `json`: one object a
  // turn on stdout instead of text.
  ChatSession(InferenceClient& client, Console& console, GenerateParams params, std::string system,
              bool json);

  // A question, or one of /reset /stats /help /exit.
  Next HandleLine(absl::string_view line);

  const std::vector<ChatTurn>& history() const { return history_; }
  // Of the last question; OK when it was answered or stopped.
  const absl::Status& last_status() const { return last_status_; }

 private:
  void Ask(absl::string_view question);
  void Reset();
  void PrintStats();
  void PrintAnswerJson(const std::string& answer, const GenerateStats* stats);

  InferenceClient& client_;
  Console& console_;
  GenerateParams params_;
  std::string system_;
  bool json_;
  std::vector<ChatTurn> history_;
  GenerateStats last_;
  int64_t num_answers_ = 0;
  int64_t total_tokens_ = 0;
  double total_decode_ms_ = 0;
  absl::Status last_status_;
};

}  // namespace isotherm::cli
