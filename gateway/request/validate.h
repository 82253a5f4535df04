#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/step/sampling_params.h"
#include "gateway/request/generate_params.h"

namespace isotherm {

// The first bound that `params` breaks: InvalidArgument with reason INVALID_VALUE and the field's
// name as in the proto ("sampling.top_p"). vocab_size bounds every token id.
absl::Status Validate(const GenerateParams& params, int64_t vocab_size);
absl::Status ValidateChat(const ChatInput& chat);
// 1 to 128 printable ASCII characters without space.
absl::Status ValidateRequestId(absl::string_view request_id);

// Defaults filled in; an absent seed becomes `random_seed`.
SamplingParams ResolveSampling(const GenerateParams::Sampling& sampling, int64_t random_seed);

}  // namespace isotherm
