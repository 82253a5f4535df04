#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/client/inference_client.h"

namespace isotherm::cli {

// Sampling flags of `run` and `chat`.
class GenerateFlags {
 public:
  void AddTo(CLI::App& verb);
  // Sampling and stop fields; flags not given are absent.
  GenerateParams Params() const;

 private:
  double temperature_ = 0;
  double top_p_ = 0;
  int64_t top_k_ = 0;
  double min_p_ = 0;
  int64_t seed_ = 0;
  int64_t max_tokens_ = 512;
  std::vector<std::string> stop_;
  bool exact_ = false;
  CLI::Option* temperature_flag_ = nullptr;
  CLI::Option* top_p_flag_ = nullptr;
  CLI::Option* top_k_flag_ = nullptr;
  CLI::Option* min_p_flag_ = nullptr;
  CLI::Option* seed_flag_ = nullptr;
};

}  // namespace isotherm::cli
