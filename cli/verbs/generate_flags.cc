#include "cli/verbs/generate_flags.h"

namespace isotherm::cli {

void GenerateFlags::AddTo(CLI::App& verb) {
  constexpr char kGroup[] = "Answer";
  temperature_flag_ = verb.add_option("--temperature", temperature_,
                                      "0 always takes the likeliest token; 0 to 2 [1]")
                          ->check(CLI::Range(0.0, 2.0))
                          ->type_name("")
                          ->group(kGroup);
  top_p_flag_ = verb.add_option("--top-p", top_p_, "likeliest tokens up to this probability [1]")
                    ->check(CLI::Range(0.0, 1.0))
                    ->type_name("")
                    ->group(kGroup);
  top_k_flag_ = verb.add_option("--top-k", top_k_, "only the k likeliest tokens; 0: all [0]")
                    ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
                    ->type_name("")
                    ->group(kGroup);
  min_p_flag_ = verb.add_option("--min-p", min_p_,
                                "only tokens of at least this share of the likeliest's [0]")
                    ->check(CLI::Range(0.0, 1.0))
                    ->type_name("")
                    ->group(kGroup);
  seed_flag_ = verb.add_option("--seed", seed_, "same seed, same answer [random]")
                   ->type_name("")
                   ->group(kGroup);
  verb.add_option("--max-tokens", max_tokens_, "longest answer [512]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("")
      ->group(kGroup);
  verb.add_option("--stop", stop_, "text that ends the answer; may be repeated")
      ->type_size(1)
      ->allow_extra_args(false)
      ->type_name("")
      ->group(kGroup);
  verb.add_flag("--exact", exact_, "compute every neuron instead of the predicted ones")
      ->group(kGroup);
}

GenerateParams GenerateFlags::Params() const {
  GenerateParams params;
  if (temperature_flag_->count() > 0) params.temperature = temperature_;
  if (top_p_flag_->count() > 0) params.top_p = top_p_;
  if (top_k_flag_->count() > 0) params.top_k = top_k_;
  if (min_p_flag_->count() > 0) params.min_p = min_p_;
  if (seed_flag_->count() > 0) params.seed = seed_;
  params.max_tokens = max_tokens_;
  params.stop = stop_;
  params.exact = exact_;
  return params;
}

}  // namespace isotherm::cli
