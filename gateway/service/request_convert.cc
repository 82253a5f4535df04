#include "gateway/service/request_convert.h"

#include "common/rpc/step_convert.h"

namespace isotherm {
namespace {

template <typename T>
std::optional<T> If(bool has, T value) {
  return has ? std::optional<T>(value) : std::nullopt;
}

GenerateParams::Sampling FromProto(const v1::SamplingParams& in) {
  GenerateParams::Sampling out;
  out.temperature = If(in.has_temperature(), in.temperature());
  out.top_p = If(in.has_top_p(), in.top_p());
  out.top_k = If(in.has_top_k(), in.top_k());
  out.min_p = If(in.has_min_p(), in.min_p());
  out.repetition_penalty = If(in.has_repetition_penalty(), in.repetition_penalty());
  out.presence_penalty = If(in.has_presence_penalty(), in.presence_penalty());
  out.frequency_penalty = If(in.has_frequency_penalty(), in.frequency_penalty());
  out.seed = If(in.has_seed(), in.seed());
  out.n = If(in.has_n(), in.n());
  for (const auto& [token, bias] : in.logit_bias()) out.logit_bias.emplace_back(token, bias);
  return out;
}

GenerateParams::Stop FromProto(const v1::StopParams& in) {
  GenerateParams::Stop out;
  out.max_tokens = If(in.has_max_tokens(), in.max_tokens());
  out.min_tokens = If(in.has_min_tokens(), in.min_tokens());
  out.stop.assign(in.stop().begin(), in.stop().end());
  out.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  out.ignore_eos = in.ignore_eos();
  out.include_stop_in_output = in.include_stop_in_output();
  return out;
}

GenerateParams::Output FromProto(const v1::OutputParams& in) {
  GenerateParams::Output out;
  out.return_text = !in.has_return_text() || in.return_text();
  out.return_token_ids = in.return_token_ids();
  out.top_logprobs = If(in.has_top_logprobs(), in.top_logprobs());
  out.echo = in.echo();
  out.progress = in.progress();
  out.layer_timings = in.layer_timings();
  return out;
}

v1::LayerTimings ToProto(const LayerTimes& times) {
  v1::LayerTimings out;
  const auto mean = [&times](double sum) { return sum / static_cast<double>(times.layers); };
  out.set_layers(times.layers);
  out.set_attention_us(mean(times.attention_us));
  out.set_predict_us(mean(times.predict_us));
  out.set_hot_us(mean(times.hot_us));
  out.set_cold_us(mean(times.cold_us));
  out.set_streamed_us(mean(times.streamed_us));
  out.set_wait_us(mean(times.wait_us));
  out.set_merge_us(mean(times.merge_us));
  out.set_handoff_us(mean(times.handoff_us));
  return out;
}

}  // namespace

ChatInput FromProto(const v1::ChatInput& chat) {
  ChatInput out;
  for (const v1::ChatMessage& message : chat.messages()) {
    out.messages.push_back({.role = message.role(),
                            .content = message.content(),
                            .name = message.name(),
                            .tool_call_id = message.tool_call_id()});
  }
  out.continue_final_message = chat.continue_final_message();
  out.template_kwargs = {chat.template_kwargs().begin(), chat.template_kwargs().end()};
  return out;
}

GenerateParams FromProto(const v1::GenerateRequest& request) {
  GenerateParams out;
  out.request_id = request.request_id();
  out.model = request.model();
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt:
      out.input = request.prompt();
      break;
    case v1::GenerateRequest::kChat:
      out.input = FromProto(request.chat());
      break;
    case v1::GenerateRequest::kTokenIds:
      out.input =
          std::vector<TokenId>(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  out.sampling = FromProto(request.sampling());
  out.stop = FromProto(request.stop());
  out.output = FromProto(request.output());
  out.exact = request.exact();
  out.priority = request.priority();
  return out;
}

v1::GenerateResponse ToProto(const OutputEvent& event, const std::string& request_id,
                             const std::string& model) {
  v1::GenerateResponse out;
  if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
    v1::Accepted& to = *out.mutable_accepted();
    to.set_request_id(request_id);
    to.set_model(model);
    to.set_prompt_tokens(accepted->prompt_tokens);
    to.set_queue_position(accepted->queue_position);
  } else if (const auto* progress = std::get_if<ProgressEvent>(&event)) {
    out.mutable_progress()->set_done_tokens(progress->done_tokens);
    out.mutable_progress()->set_total_tokens(progress->total_tokens);
  } else if (const auto* chunk = std::get_if<ChunkEvent>(&event)) {
    v1::OutputChunk& to = *out.mutable_chunk();
    to.set_index(chunk->choice);
    to.set_text(chunk->text);
    to.mutable_token_ids()->Add(chunk->token_ids.begin(), chunk->token_ids.end());
    for (const TokenLogprobs& logprobs : chunk->logprobs) {
      *to.add_logprobs() = rpc::ToProto(logprobs);
    }
  } else if (const auto* end = std::get_if<ChoiceEndEvent>(&event)) {
    v1::ChoiceEnd& to = *out.mutable_choice_end();
    to.set_index(end->choice);
    to.set_finish_reason(end->reason == FinishReason::kLength ? v1::FINISH_REASON_LENGTH
                                                              : v1::FINISH_REASON_STOP);
    to.set_matched_stop(end->matched_stop);
  } else {
    const GenerationStats& stats = std::get<CompleteEvent>(event).stats;
    v1::Complete& to = *out.mutable_complete();
    to.mutable_usage()->set_prompt_tokens(stats.prompt_tokens);
    to.mutable_usage()->set_completion_tokens(stats.completion_tokens);
    v1::Timings& timings = *to.mutable_timings();
    timings.set_queue_ms(stats.queue_ms);
    timings.set_prefill_ms(stats.prefill_ms);
    timings.set_time_to_first_token_ms(stats.time_to_first_token_ms);
    timings.set_decode_ms(stats.decode_ms);
    timings.set_gpu_hit_share(stats.gpu_hit_share);
    if (stats.layers.layers > 0) *timings.mutable_layers() = ToProto(stats.layers);
    to.set_epoch(stats.epoch);
  }
  return out;
}

}  // namespace isotherm
