#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Applied to a neuron's first product: the gate's, or the up row's where there is no gate. ReLU in
// sparse models; SiLU in dense llama, GELU (the exact one, by erf) in dense falcon.
enum class Activation { kRelu, kSilu, kGelu };

// "relu"
absl::string_view Name(Activation activation);
// InvalidArgument names those there are.
absl::StatusOr<Activation> ActivationFromName(absl::string_view name);

}  // namespace isotherm
