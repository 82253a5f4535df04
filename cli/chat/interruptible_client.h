#pragma once

#include <vector>

#include "cli/client/inference_client.h"
#include "cli/serve/interrupts.h"

namespace isotherm::cli {

// Passes calls on; a signal while Generate() runs aborts that request, which then is Cancelled, and
// nothing else. One Generate() at a time.
class InterruptibleClient final : public InferenceClient {
 public:
  InterruptibleClient(InferenceClient& inner, Interrupts& interrupts)
      : inner_(inner), interrupts_(interrupts) {}

  absl::StatusOr<GenerateStats> Generate(const GenerateParams& params, TextSink& sink) override;
  absl::Status Abort(absl::string_view request_id) override { return inner_.Abort(request_id); }
  absl::StatusOr<std::vector<int32_t>> Tokenize(absl::string_view text) override {
    return inner_.Tokenize(text);
  }
  absl::StatusOr<std::vector<ServedModel>> ModelInfo() override { return inner_.ModelInfo(); }

  // The last signal that ended a Generate(); 0 when none did.
  int last_signal() const { return last_signal_; }

 private:
  InferenceClient& inner_;
  Interrupts& interrupts_;
  int last_signal_ = 0;
};

}  // namespace isotherm::cli
