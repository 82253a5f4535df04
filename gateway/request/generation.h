#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/request/output_queue.h"
#include "gateway/request/text_assembler.h"
#include "gateway/scheduling/request_sink.h"
#include "gateway/text/text_model.h"

namespace isotherm {

struct GenerationOptions {
  std::string request_id;
  int32_t num_choices = 1;
  int32_t min_tokens = 0;
  std::vector<std::string> stops;
  bool include_stop_in_output = false;
  bool return_text = true;
  bool return_token_ids = false;
  bool return_logprobs = false;
  bool progress = false;
  std::string echo;  // goes before each choice's text
};

// Turns one request's tokens into output events: text, stop strings, chunks; logs one line at its
// end. Called by the scheduler's thread (RequestSink); `on_finish` is its last act.
class Generation : public RequestSink {
 public:
  // `model` and `queue` outlive OnFinish.
  Generation(GenerationOptions options, const TextModel& model, OutputQueue& queue,
             std::function<void()> on_finish);

  void OnAccepted(int32_t prompt_tokens, int32_t queue_position) override;
  void OnProgress(int32_t done_tokens, int32_t total_tokens) override;
  TokenVerdict OnToken(int32_t choice, TokenId token, const std::optional<TokenLogprobs>& logprobs,
                       bool is_stop_token) override;
  void OnChoiceEnd(int32_t choice, FinishReason reason) override;
  void OnFinish(absl::Status status, const GenerationStats& stats) override;
  std::optional<Clock::TimePoint> WaitingForReaderSince() const override;

 private:
  struct Choice {
    std::unique_ptr<TextDecoder> decoder;
    TextAssembler assembler;
    int32_t tokens = 0;
    ChunkEvent pending;  // ids and logprobs whose text is held back go with the next text
    std::string matched_stop;
    std::optional<FinishReason> finish;
  };
  void Flush(Choice& choice, const std::string& text);

  const GenerationOptions options_;
  OutputQueue& queue_;
  const std::function<void()> on_finish_;
  std::vector<Choice> choices_;
};

}  // namespace isotherm
