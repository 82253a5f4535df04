#include "common/process/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace isotherm {
namespace {

// One JSON object a record; nlohmann escapes what a terminal or a parser could trip over.
class JsonFormatter final : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string service) : service_(std::move(service)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto since_epoch =
        std::chrono::duration_cast<std::chrono::milliseconds>(message.time.time_since_epoch());
    const auto level = spdlog::level::to_string_view(message.level);
    nlohmann::ordered_json record;
    record["ts"] = static_cast<double>(since_epoch.count()) / 1000.0;
    record["level"] = std::string(level.data(), level.size());
    record["service"] = service_;
    record["msg"] = std::string(message.payload.data(), message.payload.size());
    const std::string line =
        record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>(service_);
  }

 private:
  std::string service_;
};

}  // namespace

absl::Status InitLogging(absl::string_view service, absl::string_view level) {
  const spdlog::level::level_enum parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") {
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown log level '", level, "'; use trace, debug, info, warn, error or off"));
  }
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  spdlog::sink_ptr sink;
  if (terminal) {
    sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  } else {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  }
  auto logger = std::make_shared<spdlog::logger>(std::string(service), std::move(sink));
  if (terminal) {
    logger->set_pattern("%H:%M:%S.%e %^%l%$ %n: %v");
  } else {
    logger->set_formatter(std::make_unique<JsonFormatter>(std::string(service)));
  }
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::info);
  // A full or closed sink must never stop serving.
  logger->set_error_handler([](const std::string&) {});
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

void log_internal::Write(LogLevel level, fmt::string_view format, fmt::format_args args) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::info, spdlog::level::warn,
                                                   spdlog::level::err, spdlog::level::critical};
  const spdlog::level::level_enum wanted = kLevels[static_cast<size_t>(level)];
  spdlog::logger* const logger = spdlog::default_logger_raw();
  if (logger == nullptr || !logger->should_log(wanted)) return;
  try {
    logger->log(wanted, fmt::vformat(format, args));
  } catch (const std::exception&) {  // no memory for the text
  }
}

std::string EscapeControl(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

}  // namespace isotherm
