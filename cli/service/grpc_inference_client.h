#pragma once

#include <memory>

#include "absl/strings/string_view.h"
#include "cli/client/inference_client.h"

namespace isotherm::cli {

// `address`: "127.0.0.1:8001" or "unix:/path.sock".
std::unique_ptr<InferenceClient> MakeGrpcInferenceClient(absl::string_view address);

}  // namespace isotherm::cli
