#include "cli/service/grpc_inference_client.h"

#include <grpcpp/client_context.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cli/service/client_status.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm::cli {
namespace {

constexpr std::chrono::seconds kUnaryDeadline{5};

v1::GenerateRequest ToProto(const GenerateParams& params) {
  v1::GenerateRequest request;
  request.set_request_id(params.request_id);
  request.set_model(params.model);
  if (params.prompt.has_value()) {
    request.set_prompt(*params.prompt);
  } else if (!params.token_ids.empty()) {
    request.mutable_token_ids()->mutable_ids()->Add(params.token_ids.begin(),
                                                    params.token_ids.end());
  } else {
    for (const ChatTurn& turn : params.turns) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role(turn.role);
      message->set_content(turn.content);
    }
  }
  v1::SamplingParams& sampling = *request.mutable_sampling();
  if (params.temperature) sampling.set_temperature(static_cast<float>(*params.temperature));
  if (params.top_p) sampling.set_top_p(static_cast<float>(*params.top_p));
  if (params.top_k) sampling.set_top_k(static_cast<int32_t>(*params.top_k));
  if (params.min_p) sampling.set_min_p(static_cast<float>(*params.min_p));
  if (params.seed) sampling.set_seed(*params.seed);
  v1::StopParams& stop = *request.mutable_stop();
  if (params.max_tokens) stop.set_max_tokens(static_cast<int32_t>(*params.max_tokens));
  for (const std::string& text : params.stop) stop.add_stop(text);
  stop.set_ignore_eos(params.ignore_eos);
  request.set_exact(params.exact);
  request.mutable_output()->set_layer_timings(params.layer_timings);
  return request;
}

std::string FinishReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "unknown";
  }
}

std::string StateName(v1::ModelState state) {
  switch (state) {
    case v1::MODEL_STATE_LOADING:
      return "loading";
    case v1::MODEL_STATE_READY:
      return "ready";
    case v1::MODEL_STATE_DEGRADED:
      return "degraded";
    default:
      return "unknown";
  }
}

void TakeComplete(const v1::Complete& complete, GenerateStats& stats) {
  stats.prompt_tokens = complete.usage().prompt_tokens();
  stats.completion_tokens = complete.usage().completion_tokens();
  const v1::Timings& timings = complete.timings();
  stats.queue_ms = timings.queue_ms();
  stats.prefill_ms = timings.prefill_ms();
  stats.time_to_first_token_ms = timings.time_to_first_token_ms();
  stats.decode_ms = timings.decode_ms();
  stats.gpu_hit_share = timings.gpu_hit_share();
  stats.epoch = complete.epoch();
  if (!timings.has_layers()) return;
  const v1::LayerTimings& layers = timings.layers();
  stats.layers = {.attention_us = layers.attention_us(),
                  .predict_us = layers.predict_us(),
                  .hot_us = layers.hot_us(),
                  .cold_us = layers.cold_us(),
                  .streamed_us = layers.streamed_us(),
                  .wait_us = layers.wait_us(),
                  .merge_us = layers.merge_us(),
                  .handoff_us = layers.handoff_us()};
}

class GrpcInferenceClient final : public InferenceClient {
 public:
  explicit GrpcInferenceClient(absl::string_view address)
      : address_(address), stub_(v1::InferenceService::NewStub(rpc::MakeChannel(address))) {}

  absl::StatusOr<GenerateStats> Generate(const GenerateParams& params, TextSink& sink) override {
    grpc::ClientContext context;
    const Running running(*this, params.request_id, context);
    const auto reader = stub_->Generate(&context, ToProto(params));
    v1::GenerateResponse response;
    GenerateStats stats;
    bool complete = false;
    while (reader->Read(&response)) {
      switch (response.event_case()) {
        case v1::GenerateResponse::kChunk:
          if (!sink.OnText(response.chunk().text())) context.TryCancel();
          break;
        case v1::GenerateResponse::kChoiceEnd:
          stats.finish_reason = FinishReasonName(response.choice_end().finish_reason());
          break;
        case v1::GenerateResponse::kComplete:
          TakeComplete(response.complete(), stats);
          complete = true;
          break;
        default:
          break;
      }
    }
    ISOTHERM_RETURN_IF_ERROR(ClientStatus(reader->Finish(), address_));
    if (!complete) return absl::InternalError("the answer ended without its last event");
    return stats;
  }

  absl::Status Abort(absl::string_view request_id) override {
    grpc::ClientContext context;
    SetDeadline(context, kUnaryDeadline);
    v1::AbortRequest request;
    request.add_request_ids(std::string(request_id));
    v1::AbortResponse response;
    absl::Status status = ClientStatus(stub_->Abort(&context, request, &response), address_);
    // Not known there (yet): the call itself is ended.
    if (!status.ok() || response.aborted_ids_size() == 0) CancelCall(std::string(request_id));
    return status;
  }

  absl::StatusOr<std::vector<int32_t>> Tokenize(absl::string_view text) override {
    grpc::ClientContext context;
    SetDeadline(context, kUnaryDeadline);
    v1::TokenizeRequest request;
    request.set_text(std::string(text));
    v1::TokenizeResponse response;
    ISOTHERM_RETURN_IF_ERROR(ClientStatus(stub_->Tokenize(&context, request, &response), address_));
    return std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end());
  }

  absl::StatusOr<std::vector<ServedModel>> ModelInfo() override {
    grpc::ClientContext context;
    SetDeadline(context, kUnaryDeadline);
    v1::ModelInfoResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        ClientStatus(stub_->ModelInfo(&context, v1::ModelInfoRequest(), &response), address_));
    std::vector<ServedModel> models;
    for (const v1::ModelDescription& model : response.models()) {
      models.push_back({.name = model.name(),
                        .architecture = model.architecture(),
                        .quantisation = model.quantisation(),
                        .parameters = model.parameters(),
                        .context_length = model.context_length(),
                        .sparse = model.sparse(),
                        .chat_template = model.chat_template(),
                        .state = StateName(model.state()),
                        .load_progress = model.load_progress()});
    }
    return models;
  }

 private:
  // Lists a call under its request id while it runs.
  class Running {
   public:
    Running(GrpcInferenceClient& client, std::string id, grpc::ClientContext& context)
        : client_(client), id_(std::move(id)) {
      std::lock_guard lock(client_.mu_);
      client_.running_[id_] = &context;
    }
    ~Running() {
      std::lock_guard lock(client_.mu_);
      client_.running_.erase(id_);
    }

   private:
    GrpcInferenceClient& client_;
    std::string id_;
  };

  void CancelCall(const std::string& request_id) {
    std::lock_guard lock(mu_);
    if (const auto it = running_.find(request_id); it != running_.end()) it->second->TryCancel();
  }

  std::string address_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
  std::mutex mu_;
  std::map<std::string, grpc::ClientContext*> running_;  // guarded by mu_
};

}  // namespace

std::unique_ptr<InferenceClient> MakeGrpcInferenceClient(absl::string_view address) {
  return std::make_unique<GrpcInferenceClient>(address);
}

}  // namespace isotherm::cli
