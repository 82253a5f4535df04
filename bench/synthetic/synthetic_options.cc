#include "bench/synthetic/synthetic_options.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "bench/synthetic/weight_recipe.h"

namespace isotherm::bench {
namespace {

absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(what); }

absl::Status Within(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Bad(absl::StrCat(name, " is ", value, "; ", low, " to ", high, " wanted"));
}

}  // namespace

absl::StatusOr<SyntheticOptions> SyntheticPreset(absl::string_view name) {
  SyntheticOptions o;
  o.name = std::string(name);
  if (name == "llama-7b" || name == "llama-13b") {
    const bool large = name == "llama-13b";
    o.num_layers = large ? 40 : 32;
    o.model_dim = large ? 5120 : 4096;
    o.ffn_dim = large ? 13824 : 11008;
    o.num_q_heads = o.num_kv_heads = large ? 40 : 32;
    o.mean_activity = large ? 0.28 : 0.30;
    o.vocab_size = 32000;
    o.predictor_rows = 1023;
    return o;
  }
  if (name == "falcon-40b") {
    o.family = SyntheticFamily::kFalcon;
    o.num_layers = 60;
    o.model_dim = 8192;
    o.ffn_dim = 32768;
    o.num_q_heads = 128;
    o.num_kv_heads = 8;
    o.mean_activity = 0.05;
    o.skew = 4.345;
    o.vocab_size = 65024;
    o.predictor_rows = 511;
    return o;
  }
  return Bad(absl::StrCat("no preset '", name, "'; there are llama-7b, llama-13b, falcon-40b"));
}

absl::Status Validate(const SyntheticOptions& o) {
  for (const absl::Status& status :
       {Within("layers", o.num_layers, 1, 1024), Within("dim", o.model_dim, 128, 65536),
        Within("ffn", o.ffn_dim, 1, 1 << 20), Within("heads", o.num_q_heads, 1, 4096),
        Within("kv-heads", o.num_kv_heads, 1, o.num_q_heads),
        Within("vocab", o.vocab_size, 256, 1 << 20),
        Within("context", o.context_length, 1, 1 << 24),
        Within("rank", o.predictor_rows, 8, 1 << 16)}) {
    if (!status.ok()) return status;
  }
  if (o.model_dim % 32 != 0) {
    return Bad(absl::StrCat("dim is ", o.model_dim, "; a multiple of 32 wanted"));
  }
  if (o.model_dim % o.num_q_heads != 0 || o.model_dim / o.num_q_heads % 2 != 0) {
    return Bad(absl::StrCat("dim ", o.model_dim, " is not heads (", o.num_q_heads,
                            ") times an even head size"));
  }
  if (o.num_q_heads % o.num_kv_heads != 0) {
    return Bad(
        absl::StrCat("heads ", o.num_q_heads, " is not a multiple of kv-heads ", o.num_kv_heads));
  }
  switch (o.dtype) {
    case DType::kF16:
    case DType::kBF16:
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
      if (o.predictor_rows % 32 != 0) {
        return Bad(absl::StrCat("rank is ", o.predictor_rows, "; with type ", Name(o.dtype),
                                " a multiple of 32 wanted, such as ",
                                (o.predictor_rows + 31) / 32 * 32));
      }
      break;
    default:
      return Bad(absl::StrCat("type is ", Name(o.dtype), "; F16, BF16, Q8_0 or Q4_0 wanted"));
  }
  if (!(o.mean_activity > 0) || !(o.skew >= 0) || !(o.mean_activity * (o.skew + 1) < 1)) {
    return Bad(absl::StrCat("activity ", o.mean_activity, " with skew ", o.skew,
                            ": the busiest neuron would fire with probability ",
                            o.mean_activity * (o.skew + 1), "; above 0 and below 1 wanted"));
  }
  if (!(o.drift >= 0 && o.drift <= 1)) {
    return Bad(absl::StrCat("drift is ", o.drift, "; 0 to 1 wanted"));
  }
  return CheckUnits(o);
}

}  // namespace isotherm::bench
