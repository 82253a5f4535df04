#pragma once

#include "models/bundle_layout.h"

namespace isotherm::gpu {

// Two layers of 70 neurons: a bitmap's second word is used in part.
inline constexpr BundleLayout kSmallBundles{.dtype = DType::kF16,
                                            .rows = 3,
                                            .model_dim = 32,
                                            .row_bytes = 64,
                                            .bundle_bytes = 192,
                                            .num_neurons = 70,
                                            .num_layers = 2};

}  // namespace isotherm::gpu
