#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm::integration {

// What one Generate call brought.
struct Answer {
  grpc::Status status;
  bool accepted = false, complete = false;
  std::vector<int32_t> token_ids;                     // of choice 0
  std::vector<isotherm::v1::TokenLogprobs> logprobs;  // likewise, if asked for
  std::string text;
  isotherm::v1::FinishReason finish_reason = isotherm::v1::FINISH_REASON_UNSPECIFIED;
  isotherm::v1::Complete summary;
};

// A Generate call that a test reads, leaves unread or cancels as it likes. One thread uses it; the
// destructor cancels what still runs.
class OpenStream {
 public:
  struct Options {
    std::chrono::milliseconds deadline = std::chrono::seconds(60);
    bool wait_for_ready = true;  // false: a gateway that is away is an error at once
  };

  OpenStream(std::shared_ptr<grpc::Channel> channel, const isotherm::v1::GenerateRequest& request,
             Options options);
  ~OpenStream();
  OpenStream(const OpenStream&) = delete;
  OpenStream& operator=(const OpenStream&) = delete;

  // Reads one event; false when the stream has ended.
  bool ReadEvent();
  // Reads until the call has brought `count` tokens; false when it ended before.
  bool ReadTokens(size_t count);
  void Cancel() { context_.TryCancel(); }
  // Reads to the end.
  const Answer& Finish();

  const Answer& answer() const { return answer_; }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<isotherm::v1::InferenceService::Stub> stub_;
  std::unique_ptr<grpc::ClientReader<isotherm::v1::GenerateResponse>> reader_;
  Answer answer_;
  bool ended_ = false;
};

}  // namespace isotherm::integration
