#include "tests/integration/open_stream.h"

namespace isotherm::integration {

OpenStream::OpenStream(std::shared_ptr<grpc::Channel> channel, const v1::GenerateRequest& request,
                       Options options)
    : stub_(v1::InferenceService::NewStub(std::move(channel))) {
  context_.set_wait_for_ready(options.wait_for_ready);
  context_.set_deadline(std::chrono::system_clock::now() + options.deadline);
  reader_ = stub_->Generate(&context_, request);
}

OpenStream::~OpenStream() {
  if (ended_) return;
  Cancel();
  Finish();
}

bool OpenStream::ReadEvent() {
  v1::GenerateResponse event;
  if (ended_ || !reader_->Read(&event)) {
    if (!ended_) answer_.status = reader_->Finish();
    ended_ = true;
    return false;
  }
  switch (event.event_case()) {
    case v1::GenerateResponse::kAccepted:
      answer_.accepted = true;
      break;
    case v1::GenerateResponse::kChunk:
      if (event.chunk().index() != 0) break;
      answer_.text += event.chunk().text();
      for (const int32_t id : event.chunk().token_ids()) answer_.token_ids.push_back(id);
      for (const auto& logprobs : event.chunk().logprobs()) answer_.logprobs.push_back(logprobs);
      break;
    case v1::GenerateResponse::kChoiceEnd:
      if (event.choice_end().index() == 0)
        answer_.finish_reason = event.choice_end().finish_reason();
      break;
    case v1::GenerateResponse::kComplete:
      answer_.complete = true;
      answer_.summary = event.complete();
      break;
    default:
      break;
  }
  return true;
}

bool OpenStream::ReadTokens(size_t count) {
  while (answer_.token_ids.size() < count) {
    if (!ReadEvent()) return false;
  }
  return true;
}

const Answer& OpenStream::Finish() {
  while (ReadEvent()) {
  }
  return answer_;
}

}  // namespace isotherm::integration
