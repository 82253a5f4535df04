#include "gateway/request/generation.h"

#include <utility>

#include "absl/strings/str_join.h"
#include "common/process/log.h"

namespace isotherm {

Generation::Generation(GenerationOptions options, const TextModel& model, OutputQueue& queue,
                       std::function<void()> on_finish)
    : options_(std::move(options)), queue_(queue), on_finish_(std::move(on_finish)) {
  for (int32_t i = 0; i < options_.num_choices; ++i) {
    choices_.push_back(
        {.decoder = model.NewDecoder(),
         .assembler = TextAssembler(options_.stops, options_.include_stop_in_output),
         .pending = {.choice = i, .text = options_.return_text ? options_.echo : std::string()}});
  }
}

void Generation::OnAccepted(int32_t prompt_tokens, int32_t queue_position) {
  queue_.Push(AcceptedEvent{prompt_tokens, queue_position});
}

void Generation::OnProgress(int32_t done_tokens, int32_t total_tokens) {
  if (options_.progress) queue_.Push(ProgressEvent{done_tokens, total_tokens});
}

void Generation::Flush(Choice& choice, const std::string& text) {
  if (options_.return_text) choice.pending.text += text;
  if (choice.pending.text.empty() && (options_.return_text || choice.pending.token_ids.empty()) &&
      !choice.finish.has_value()) {
    return;
  }
  if (choice.pending.text.empty() && choice.pending.token_ids.empty() &&
      choice.pending.logprobs.empty()) {
    return;
  }
  ChunkEvent chunk{.choice = choice.pending.choice};
  std::swap(chunk, choice.pending);
  queue_.Push(std::move(chunk));
}

TokenVerdict Generation::OnToken(int32_t index, TokenId token,
                                 const std::optional<TokenLogprobs>& logprobs, bool is_stop_token) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  ++choice.tokens;
  if (is_stop_token && !options_.include_stop_in_output) return TokenVerdict::kContinue;
  if (options_.return_token_ids) choice.pending.token_ids.push_back(token);
  if (options_.return_logprobs && logprobs.has_value()) {
    choice.pending.logprobs.push_back(*logprobs);
  }
  TextAssembler::Output output =
      choice.assembler.Append(choice.decoder->Append(token), choice.tokens > options_.min_tokens);
  Flush(choice, output.text);
  if (!output.matched_stop.has_value()) return TokenVerdict::kContinue;
  choice.matched_stop = *std::move(output.matched_stop);
  return TokenVerdict::kStopText;
}

void Generation::OnChoiceEnd(int32_t index, FinishReason reason) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  choice.finish = reason;
  Flush(choice, choice.assembler.Finish());
  queue_.Push(
      ChoiceEndEvent{.choice = index, .reason = reason, .matched_stop = choice.matched_stop});
}

void Generation::OnFinish(absl::Status status, const GenerationStats& stats) {
  const double total_ms = stats.time_to_first_token_ms + stats.decode_ms;
  const double rate =
      stats.decode_ms > 0 ? 1000.0 * (stats.completion_tokens - 1) / stats.decode_ms : 0.0;
  std::string finish = absl::StatusCodeToString(status.code());
  if (status.ok()) {
    finish = absl::StrJoin(choices_, ",", [](std::string* out, const Choice& choice) {
      out->append(choice.finish == FinishReason::kLength ? "length" : "stop");
    });
    queue_.Push(CompleteEvent{stats});
  }
  LogInfo("request {} prompt={} completion={} ms={:.1f} ttft_ms={:.1f} tok/s={:.1f} finish={}",
          EscapeControl(options_.request_id), stats.prompt_tokens, stats.completion_tokens,
          total_ms, stats.time_to_first_token_ms, rate, finish);
  // Whoever is told may delete this object.
  const std::function<void()> on_finish = on_finish_;
  queue_.Close(std::move(status));
  on_finish();
}

std::optional<Clock::TimePoint> Generation::WaitingForReaderSince() const {
  return queue_.WaitingSince();
}

}  // namespace isotherm
