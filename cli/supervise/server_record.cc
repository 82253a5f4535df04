#include "cli/supervise/server_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cli/supervise/run_dir.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxRecordBytes = 64 << 10;

fs::path RecordPath(const fs::path& state_dir) { return state_dir / "serve.json"; }

std::optional<ServerRecord> ReadFile(const fs::path& path) {
  std::error_code error;
  if (fs::file_size(path, error) > kMaxRecordBytes || error) return std::nullopt;
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const nlohmann::json json = nlohmann::json::parse(text.str(), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  ServerRecord record;
  const auto text_of = [&json](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  const auto pid = json.find("pid");
  const auto ready = json.find("ready");
  if (pid == json.end() || !pid->is_number_integer()) return std::nullopt;
  record.pid = pid->get<int64_t>();
  record.ready = ready != json.end() && ready->is_boolean() && ready->get<bool>();
  record.run_dir = text_of("run_dir");
  record.model = text_of("model");
  record.gateway = text_of("gateway");
  record.placement = text_of("placement");
  record.gpu_worker = text_of("gpu_worker");
  record.cpu_worker = text_of("cpu_worker");
  record.version = text_of("version");
  return record;
}

}  // namespace

absl::Status WriteServerRecord(const fs::path& state_dir, const ServerRecord& record) {
  nlohmann::ordered_json json;
  json["pid"] = record.pid;
  json["ready"] = record.ready;
  json["model"] = record.model;
  json["gateway"] = record.gateway;
  json["placement"] = record.placement;
  json["gpu_worker"] = record.gpu_worker;
  json["cpu_worker"] = record.cpu_worker;
  json["run_dir"] = record.run_dir;
  json["version"] = record.version;
  const std::string text =
      json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const fs::path path = RecordPath(state_dir);
  const fs::path draft = absl::StrCat(path.string(), ".", ::getpid());
  UniqueFd fd(::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const bool written = fd.valid() && ::write(fd.get(), text.data(), text.size()) ==
                                         static_cast<ssize_t>(text.size());
  if (!written || std::rename(draft.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(draft.c_str());
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot write ", path.string(), ": ", std::strerror(error)));
  }
  return absl::OkStatus();
}

std::optional<ServerRecord> ReadServerRecord(const fs::path& state_dir) {
  std::optional<ServerRecord> record = ReadFile(RecordPath(state_dir));
  if (!record.has_value() || record->run_dir.empty() || !RunDir::IsAlive(record->run_dir)) {
    return std::nullopt;
  }
  return record;
}

void RemoveServerRecord(const fs::path& state_dir, int64_t pid) {
  const std::optional<ServerRecord> record = ReadFile(RecordPath(state_dir));
  std::error_code error;
  if (record.has_value() && record->pid == pid) fs::remove(RecordPath(state_dir), error);
}

}  // namespace isotherm::cli
