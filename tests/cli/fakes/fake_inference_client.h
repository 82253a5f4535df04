#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "cli/client/inference_client.h"

namespace isotherm::cli {

// Answers with the texts queued, or fails with the status queued, and keeps what it was asked.
class FakeInferenceClient final : public InferenceClient {
 public:
  struct Answer {
    std::vector<std::string> texts;
    absl::Status status;  // after the texts
    GenerateStats stats;
  };

  absl::StatusOr<GenerateStats> Generate(const GenerateParams& params, TextSink& sink) override {
    asked.push_back(params);
    if (answers.empty()) return absl::InternalError("no answer queued");
    const Answer answer = std::move(answers.front());
    answers.pop_front();
    for (const std::string& text : answer.texts) {
      if (!sink.OnText(text)) return absl::CancelledError("ended by the sink");
    }
    if (!answer.status.ok()) return answer.status;
    return answer.stats;
  }
  absl::Status Abort(absl::string_view request_id) override {
    aborted.emplace_back(request_id);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<int32_t>> Tokenize(absl::string_view text) override {
    return std::vector<int32_t>(text.size() / 4, 7);
  }
  absl::StatusOr<std::vector<ServedModel>> ModelInfo() override {
    return std::vector<ServedModel>{{.name = "fake"}};
  }

  std::deque<Answer> answers;
  std::vector<GenerateParams> asked;
  std::vector<std::string> aborted;
};

}  // namespace isotherm::cli
