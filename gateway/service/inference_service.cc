#include "gateway/service/inference_service.h"

#include <utility>

#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "gateway/request/prepare_generation.h"
#include "gateway/request/validate.h"
#include "gateway/service/request_convert.h"

namespace isotherm {
namespace {

constexpr int kMaxAbortIds = 1024;

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(rpc::ToGrpcStatus(status));
  return reactor;
}

absl::Status TokenizeInto(const v1::TokenizeRequest& request, const TextModel& model,
                          v1::TokenizeResponse& response) {
  std::vector<TokenId> tokens;
  if (request.input_case() == v1::TokenizeRequest::kChat) {
    const ChatInput chat = FromProto(request.chat());
    ISOTHERM_RETURN_IF_ERROR(ValidateChat(chat));
    ISOTHERM_ASSIGN_OR_RETURN(tokens, TokenizeChat(chat, model));
  } else {
    const TextSegment segment{.text = request.text(), .parse_special = request.parse_special()};
    auto text_tokens = model.Tokenize({&segment, 1}, request.add_special());
    if (!text_tokens.ok()) return AsInvalidField(text_tokens.status(), "text");
    tokens = *std::move(text_tokens);
  }
  response.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  if (request.with_pieces()) {
    for (const TokenId token : tokens) response.add_pieces(model.Piece(token));
  }
  response.set_max_context(model.facts().context_length);
  return absl::OkStatus();
}

absl::Status DetokenizeInto(const v1::DetokenizeRequest& request, const TextModel& model,
                            v1::DetokenizeResponse& response) {
  const std::vector<TokenId> tokens(request.token_ids().begin(), request.token_ids().end());
  for (const TokenId token : tokens) {
    if (token < 0 || token >= model.facts().vocab_size) {
      return AsInvalidField(absl::InvalidArgumentError("token_ids holds an id that is no token"),
                            "token_ids");
    }
  }
  response.set_text(model.Decode(tokens));
  return absl::OkStatus();
}

}  // namespace

InferenceService::InferenceService(const GenerateLimits& limits, const ModelSlot& models,
                                   SchedulerThread& scheduler,
                                   std::function<bool()> placement_connected)
    : limits_(limits),
      models_(models),
      scheduler_(scheduler),
      placement_connected_(std::move(placement_connected)) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return GenerateReactor::Start(*context, FromProto(*request), models_, scheduler_, limits_,
                                open_answers_);
}

grpc::ServerUnaryReactor* InferenceService::Abort(grpc::CallbackServerContext* context,
                                                  const v1::AbortRequest* request,
                                                  v1::AbortResponse* response) {
  if (request->request_ids_size() > kMaxAbortIds) {
    return Reply(context, AsInvalidField(absl::InvalidArgumentError("more than 1024 request_ids"),
                                         "request_ids"));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // Request and response live until Finish.
  scheduler_.Post([request, response, reactor](Scheduler& scheduler) {
    for (const std::string& id : request->request_ids()) {
      const bool known = scheduler.CancelById(id, absl::CancelledError("aborted by the client"));
      *(known ? response->add_aborted_ids() : response->add_unknown_ids()) = id;
    }
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const auto model = models_.Find(request->model());
  return Reply(context, model.ok() ? TokenizeInto(*request, **model, *response) : model.status());
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const auto model = models_.Find(request->model());
  return Reply(context, model.ok() ? DetokenizeInto(*request, **model, *response) : model.status());
}

grpc::ServerUnaryReactor* InferenceService::ModelInfo(grpc::CallbackServerContext* context,
                                                      const v1::ModelInfoRequest* request,
                                                      v1::ModelInfoResponse* response) {
  if (!models_.Matches(request->model())) {
    return Reply(context, models_.Find(request->model()).status());
  }
  const auto model = models_.Get();
  const SchedulerState state = scheduler_.state();
  v1::ModelDescription& out = *response->add_models();
  out.set_name(models_.served_name());
  for (const std::string& alias : models_.aliases()) out.add_aliases(alias);
  // Its own share of the start, then the gpu_worker's.
  out.set_load_progress((model != nullptr ? 0.5 : 0.0) + (state.gpu_attached ? 0.5 : 0.0));
  if (model == nullptr || !state.gpu_attached) {
    out.set_state(v1::MODEL_STATE_LOADING);
  } else if (!state.cpu_attached || !placement_connected_()) {
    out.set_state(v1::MODEL_STATE_DEGRADED);
  } else {
    out.set_state(v1::MODEL_STATE_READY);
  }
  if (model != nullptr) {
    const ModelFacts& facts = model->facts();
    out.set_architecture(facts.architecture);
    out.set_quantisation(facts.quantisation);
    out.set_parameters(facts.parameters);
    out.set_context_length(state.gpu_attached ? state.context_length : facts.context_length);
    out.set_vocab_size(facts.vocab_size);
    out.set_sparse(facts.sparse);
    out.set_chat_template(facts.chat_template);
  }
  return Reply(context, absl::OkStatus());
}

}  // namespace isotherm
