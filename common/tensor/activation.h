#pragma once

namespace isotherm {

// Applied to a neuron's gate product: ReLU in sparse models, SiLU in dense llama ones.
enum class Activation { kRelu, kSilu };

}  // namespace isotherm
