// A gateway without workers: answers a chat with the words of its last message, in capitals. The
// word "forever" is answered until the client ends it.

#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/process/service_process.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm {
namespace {

class FakeInference final : public v1::InferenceService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    v1::GenerateResponse response;
    response.mutable_accepted()->set_request_id(request->request_id());
    writer->Write(response);
    const std::string input = request->has_prompt() ? request->prompt()
                              : request->chat().messages().empty()
                                  ? ""
                                  : request->chat().messages().rbegin()->content();
    int tokens = 0;
    for (absl::string_view word : absl::StrSplit(input, ' ')) {
      response.mutable_chunk()->set_text(
          absl::StrCat(tokens++ > 0 ? " " : "", absl::AsciiStrToUpper(word)));
      writer->Write(response);
      if (word == "forever" && !WaitForEnd(*context, request->request_id())) {
        return grpc::Status(grpc::StatusCode::CANCELLED, "aborted");
      }
    }
    response.mutable_choice_end()->set_finish_reason(v1::FINISH_REASON_STOP);
    writer->Write(response);
    response.mutable_complete()->mutable_usage()->set_completion_tokens(tokens);
    response.mutable_complete()->mutable_timings()->set_decode_ms(tokens);
    writer->Write(response);
    return grpc::Status::OK;
  }

  grpc::Status Abort(grpc::ServerContext*, const v1::AbortRequest* request,
                     v1::AbortResponse* response) override {
    std::lock_guard lock(mu_);
    for (const std::string& id : request->request_ids()) {
      aborted_.insert(id);
      response->add_aborted_ids(id);
    }
    changed_.notify_all();
    return grpc::Status::OK;
  }

  grpc::Status ModelInfo(grpc::ServerContext*, const v1::ModelInfoRequest*,
                         v1::ModelInfoResponse* response) override {
    v1::ModelDescription& model = *response->add_models();
    model.set_name("echo");
    model.set_architecture("none");
    model.set_quantisation("Q8_0");
    model.set_context_length(128);
    model.set_chat_template(true);
    model.set_state(v1::MODEL_STATE_READY);
    return grpc::Status::OK;
  }

 private:
  // False once the request is aborted or its client is gone.
  bool WaitForEnd(grpc::ServerContext& context, const std::string& id) {
    std::unique_lock lock(mu_);
    while (!aborted_.contains(id) && !context.IsCancelled()) {
      changed_.wait_for(lock, std::chrono::milliseconds(20));
    }
    return false;
  }

  std::mutex mu_;
  std::condition_variable changed_;
  std::set<std::string> aborted_;
};

int Main(int argc, char** argv) {
  ShutdownSignal shutdown;
  rpc::ServerOptions options;
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--listen") options.listen = argv[i + 1];
  }
  FakeInference service;
  auto server = rpc::Server::Start(options, {&service});
  if (!server.ok()) return ExitWith(server.status());
  (*server)->SetServing(true);
  AnnounceListening((*server)->address());
  AnnounceReady();
  shutdown.Wait();
  (*server)->Shutdown(std::chrono::milliseconds(100));
  return 0;
}

}  // namespace
}  // namespace isotherm

int main(int argc, char** argv) { return isotherm::Main(argc, argv); }
