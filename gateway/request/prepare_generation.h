#pragma once

#include "absl/status/statusor.h"
#include "gateway/request/generate_params.h"
#include "gateway/request/generation.h"
#include "gateway/scheduling/scheduled_request.h"
#include "gateway/text/text_model.h"

namespace isotherm {

struct PreparedGeneration {
  GenerationRequest request;
  GenerationOptions options;
};

// The first half of a request's life: bounds checked, chat rendered, text tokenized, defaults
// resolved. InvalidArgument with reason and field. Takes time in proportion to the prompt.
absl::StatusOr<PreparedGeneration> PrepareGeneration(const GenerateParams& params,
                                                     const TextModel& model, int64_t random_seed,
                                                     Clock::TimePoint deadline);

// A chat as token ids; what users wrote gives plain tokens only.
absl::StatusOr<std::vector<TokenId>> TokenizeChat(const ChatInput& chat, const TextModel& model);

// The status with reason INVALID_VALUE and `field`, unless it has a reason.
absl::Status AsInvalidField(absl::Status status, absl::string_view field);

}  // namespace isotherm
