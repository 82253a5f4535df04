#include "cli/client/inference_client.h"

namespace isotherm::cli {

double GenerateStats::TokensPerSecond() const {
  if (completion_tokens < 2 || decode_ms <= 0) return 0;
  return static_cast<double>(completion_tokens - 1) * 1000.0 / decode_ms;
}

}  // namespace isotherm::cli
