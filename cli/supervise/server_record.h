#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace isotherm::cli {

// What STATE_DIR/serve.json says of the server that runs there: where client verbs find it.
struct ServerRecord {
  int64_t pid = 0;
  std::string run_dir;
  std::string model;  // path
  std::string gateway;
  std::string placement;
  std::string gpu_worker;
  std::string cpu_worker;
  bool ready = false;
  std::string version;
};

// Replaces the file in one step: a reader sees the old or the new record.
absl::Status WriteServerRecord(const std::filesystem::path& state_dir, const ServerRecord& record);
// The record of a server that still runs; nullopt when there is none, it died, or the file is not
// one of ours.
std::optional<ServerRecord> ReadServerRecord(const std::filesystem::path& state_dir);
// Takes the record away if it is still that of `pid`.
void RemoveServerRecord(const std::filesystem::path& state_dir, int64_t pid);

}  // namespace isotherm::cli
