#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

struct ChatTurn {
  std::string role;  // system, user or assistant
  std::string content;
};

// What to generate. Exactly one of prompt, turns and token_ids is set; absent sampling fields take
// the server's defaults.
struct GenerateParams {
  std::string request_id;
  std::string model;  // "": the one served
  std::optional<std::string> prompt;
  std::vector<ChatTurn> turns;
  std::vector<int32_t> token_ids;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<int64_t> seed;
  std::optional<int64_t> max_tokens;
  std::vector<std::string> stop;
  bool exact = false;  // every neuron
  bool ignore_eos = false;
  bool layer_timings = false;
};

// Where a layer's time went while decoding: means in us over the layers measured.
struct LayerTimes {
  double attention_us = 0;
  double predict_us = 0;
  double hot_us = 0;       // the gpu_worker's neurons
  double cold_us = 0;      // the cpu_worker's, at the same time
  double streamed_us = 0;  // cold ones that a GPU read over PCIe, at the same time
  double wait_us = 0;      // of the gpu_worker for the cpu_worker
  double merge_us = 0;
  double handoff_us = 0;  // what it costs that two processes share a layer
};

struct GenerateStats {
  std::string finish_reason;  // "stop" or "length"
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double queue_ms = 0;
  double prefill_ms = 0;
  double time_to_first_token_ms = 0;
  double decode_ms = 0;
  double gpu_hit_share = 0;  // of active neurons, those that were hot
  int64_t epoch = 0;
  std::optional<LayerTimes> layers;  // if asked for

  // Of the tokens after the first; 0 when there are none.
  double TokensPerSecond() const;
};

// Takes an answer's text as it comes. Called on the thread in Generate().
class TextSink {
 public:
  virtual ~TextSink() = default;
  // False ends the request.
  virtual bool OnText(absl::string_view text) = 0;
};

struct ServedModel {
  std::string name;
  std::string architecture;
  std::string quantisation;
  int64_t parameters = 0;
  int64_t context_length = 0;
  bool sparse = false;
  bool chat_template = false;
  std::string state;  // "loading", "ready", "degraded"
  double load_progress = 0;
};

// A gateway, as the client verbs use it. Thread-safe: Abort() comes from another thread while
// Generate() blocks. A gateway that cannot be reached is Unavailable; its own errors keep their
// status.
class InferenceClient {
 public:
  virtual ~InferenceClient() = default;
  // Cancelled when the sink or Abort() ended it.
  virtual absl::StatusOr<GenerateStats> Generate(const GenerateParams& params, TextSink& sink) = 0;
  virtual absl::Status Abort(absl::string_view request_id) = 0;
  virtual absl::StatusOr<std::vector<int32_t>> Tokenize(absl::string_view text) = 0;
  virtual absl::StatusOr<std::vector<ServedModel>> ModelInfo() = 0;
};

}  // namespace isotherm::cli
