#include "cli/supervise/log_line.h"

#include <nlohmann/json.hpp>

#include "common/process/log.h"

namespace isotherm::cli {

LogLine ParseLogLine(absl::string_view service, absl::string_view line) {
  LogLine out;
  out.service = std::string(service);
  out.raw = EscapeControl(line);
  out.message = out.raw;
  if (line.empty() || line.front() != '{') return out;
  const nlohmann::json record =
      nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return out;
  const auto level = record.find("level");
  const auto message = record.find("msg");
  if (level == record.end() || message == record.end() || !level->is_string() ||
      !message->is_string()) {
    return out;
  }
  out.level = level->get<std::string>();
  out.message = EscapeControl(message->get<std::string>());
  return out;
}

bool IsError(const LogLine& line) { return line.level == "error" || line.level == "critical"; }

}  // namespace isotherm::cli
