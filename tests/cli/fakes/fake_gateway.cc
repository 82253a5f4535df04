// A gateway without workers, and a placement service without a solver, in one. Answers a chat with
// the words of its last message, in capitals. The word "forever" is answered until the client ends
// it.

#include <signal.h>

#include <atomic>
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
#include "isotherm/v1/placement.grpc.pb.h"

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

// Epoch 2 is live; epoch 1 is history. A change makes the next epoch.
class FakePlacement final : public v1::PlacementService::Service {
 public:
  grpc::Status GetPlacement(grpc::ServerContext*, const v1::GetPlacementRequest* request,
                            v1::GetPlacementResponse* response) override {
    if (request->epoch() > live_) return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such epoch");
    *response->mutable_plan() = Plan(request->epoch() == 0 ? live_.load() : request->epoch());
    return grpc::Status::OK;
  }

  grpc::Status History(grpc::ServerContext*, const v1::HistoryRequest* request,
                       v1::HistoryResponse* response) override {
    const bool first = request->page_token().empty();
    v1::HistoryEntry& entry = *response->add_entries();
    *entry.mutable_plan() = Plan(first ? 2 : 1);
    entry.set_state(first ? v1::PLAN_STATE_LIVE : v1::PLAN_STATE_RETIRED);
    if (first) response->set_next_page_token("older");
    return grpc::Status::OK;
  }

  grpc::Status Rollback(grpc::ServerContext*, const v1::RollbackRequest* request,
                        v1::RollbackResponse* response) override {
    if (request->to_epoch() > live_) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "epoch was never live");
    }
    *response->mutable_plan() = Plan(++live_);
    return grpc::Status::OK;
  }

  grpc::Status SetBudget(grpc::ServerContext*, const v1::SetBudgetRequest* request,
                         v1::SetBudgetResponse* response) override {
    response->mutable_budget()->set_requested_bytes(request->bytes());
    response->mutable_budget()->set_effective_bytes(request->bytes() / 2);
    *response->mutable_plan() = Plan(++live_);
    return grpc::Status::OK;
  }

 private:
  static v1::PlacementPlan Plan(int64_t epoch) {
    v1::PlacementPlan plan;
    plan.set_epoch(epoch);
    plan.set_cause(v1::PLACEMENT_CAUSE_INITIAL);
    plan.set_profile("chat");
    plan.set_used_bytes(1'000'000);
    plan.set_budget_bytes(2'000'000);
    plan.set_objective(0.75);
    for (const int64_t hot : {25, 75}) {
      v1::LayerPlacement& layer = *plan.add_layers();
      layer.set_gpu_neurons(hot);
      layer.set_total_neurons(100);
      layer.set_predicted_hit_share(0.5);
    }
    return plan;
  }

  std::atomic<int64_t> live_{2};
};

int Main(int argc, char** argv) {
  ShutdownSignal shutdown;
  rpc::ServerOptions options;
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--listen") options.listen = argv[i + 1];
  }
  FakeInference inference;
  FakePlacement placement;
  auto server = rpc::Server::Start(options, {&inference, &placement});
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
