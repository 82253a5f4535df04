#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {

// A server's private folder (0700) for Unix sockets: STATE_DIR/run/<random>. While the server lives
// it holds a lock on the file `lock` inside, so that others can tell a running server from the
// remains of a killed one whatever became of its pid. When STATE_DIR is too long for a socket
// path, the sockets lie in a folder under /tmp that the run folder links to. Removed at the end.
class RunDir {
 public:
  // Makes STATE_DIR (0700) when it is missing and removes run folders of dead servers first.
  // PermissionDenied or ResourceExhausted with the path and the cause.
  static absl::StatusOr<std::unique_ptr<RunDir>> Create(const std::filesystem::path& state_dir);
  ~RunDir();
  RunDir(const RunDir&) = delete;
  RunDir& operator=(const RunDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& socket_dir() const { return socket_dir_; }
  // "unix:<socket_dir>/<name>.sock"
  std::string SocketAddress(absl::string_view name) const;

  // Whether the server that made the run folder `path` still runs.
  static bool IsAlive(const std::filesystem::path& path);

 private:
  RunDir() = default;
  std::filesystem::path path_;
  std::filesystem::path socket_dir_;
  UniqueFd lock_;
};

}  // namespace isotherm::cli
