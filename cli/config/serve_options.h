#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/config/layered_options.h"

namespace isotherm::cli {

// How the four services of one host are to run.
struct ServeOptions {
  std::string model;  // as given: a path or a name
  std::string grpc_listen = "127.0.0.1:8001";
  std::string alias;         // "": the file's name
  int64_t context = 0;       // tokens; 0: what fits, at most the model's
  int64_t parallel = 4;      // sequences that run at once
  int64_t max_queue = 256;   // requests that wait
  int64_t vram_budget = -1;  // bytes of hot neurons; -1: auto
  std::string device = "auto";
  int64_t threads = 0;   // of each worker; 0: auto
  int64_t max_rows = 0;  // of a step; 0: auto
  std::string predictor_type = "8bit";
  double streamed_share = -1;  // of cold neurons, read by the GPU over PCIe; -1: adapted
  std::string transport = "shm";
  std::string arena = "auto";    // how the cpu_worker holds the neurons: auto, map or copy
  std::string activation;        // "": the model's
  std::string sparse_threshold;  // "": the model's
  std::string chat_template;     // "": the model's
  std::string profile;           // activation profile; "": the model's first
  std::string follow = "on";     // off: neurons move only when asked
  std::string kv_floor = "all";  // KV memory that hot neurons do not lend
  std::string log_level = "info";
  std::chrono::milliseconds drain_timeout{300'000};
  std::filesystem::path state_dir;
  std::filesystem::path model_dir;
};

// Flags, environment and YAML keys of `serve`, with defaults and help.
const std::vector<OptionSpec>& ServeOptionSpecs();

// Typed and checked. InvalidArgument names the option, where its value came from, what was got and
// what is wanted.
absl::StatusOr<ServeOptions> ParseServeOptions(const LayeredOptions& values);

}  // namespace isotherm::cli
