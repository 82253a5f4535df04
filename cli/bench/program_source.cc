#include "cli/bench/program_source.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

using nlohmann::json;

constexpr int kAnswerTimeoutMs = 600'000;
constexpr size_t kMaxLineBytes = 64 << 10;

// The object in a line; its "error" as a status.
absl::StatusOr<json> ParseAnswer(const std::string& name, const std::string& line) {
  json answer = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!answer.is_object()) return absl::UnavailableError(absl::StrCat(name, " said: ", line));
  const auto error = answer.find("error");
  if (error == answer.end()) return answer;
  return absl::UnavailableError(
      absl::StrCat(name, ": ", error->is_string() ? error->get<std::string>() : error->dump()));
}

double Number(const json& answer, const char* key) {
  const auto found = answer.find(key);
  return found != answer.end() && found->is_number() ? found->get<double>() : 0.0;
}

class ProgramSource final : public BenchSource {
 public:
  ProgramSource(std::shared_ptr<BenchProgram> program, std::string name, bool exact)
      : program_(std::move(program)), name_(std::move(name)), exact_(exact) {}
  std::string name() const override { return name_; }
  bool Supports(const BenchCase& bench) const override { return bench.concurrency == 1; }
  absl::StatusOr<BenchSample> Run(const BenchCase& bench) override {
    return program_->Generate(bench, exact_);
  }

 private:
  const std::shared_ptr<BenchProgram> program_;
  const std::string name_;
  const bool exact_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<BenchProgram>> BenchProgram::Start(
    const std::vector<std::string>& argv) {
  if (argv.empty()) return absl::InvalidArgumentError("no program to compare with");
  std::shared_ptr<BenchProgram> program(new BenchProgram());
  program->name_ = argv[0];
  ISOTHERM_ASSIGN_OR_RETURN(
      program->child_,
      ChildProcess::Start(argv[0], {argv.begin() + 1, argv.end()}, /*pipe_stdin=*/true));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string line, program->ReadLine());
  ISOTHERM_ASSIGN_OR_RETURN(const json ready, ParseAnswer(program->name_, line));
  const auto name = ready.find("name");
  if (name != ready.end() && name->is_string()) program->name_ = name->get<std::string>();
  return program;
}

absl::StatusOr<std::string> BenchProgram::ReadLine() {
  while (true) {
    if (const size_t end = received_.find('\n'); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    if (received_.size() > kMaxLineBytes) {
      return absl::UnavailableError(absl::StrCat(name_, " sent a line without an end"));
    }
    // stderr is drained too: a full pipe would stop the program.
    std::array<pollfd, 2> fds = {
        {{child_->stdout_fd(), POLLIN, 0}, {child_->stderr_fd(), POLLIN, 0}}};
    const int ready = ::poll(fds.data(), fds.size(), kAnswerTimeoutMs);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return absl::DeadlineExceededError(absl::StrCat(name_, " does not answer"));
    std::array<char, 4096> bytes;
    if (fds[1].revents != 0 && ::read(fds[1].fd, bytes.data(), bytes.size()) == 0) {
      child_->CloseStderr();
    }
    if (fds[0].revents == 0) continue;
    const ssize_t got = ::read(fds[0].fd, bytes.data(), bytes.size());
    if (got == 0) return absl::UnavailableError(absl::StrCat(name_, " ended without an answer"));
    if (got > 0) received_.append(bytes.data(), static_cast<size_t>(got));
  }
}

absl::StatusOr<BenchSample> BenchProgram::Generate(const BenchCase& bench, bool exact) {
  const json job = {{"job", "generate"},
                    {"prompt", bench.prompt},
                    {"generate", bench.generated_tokens},
                    {"exact", exact}};
  const std::string line = job.dump() + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t wrote = ::write(child_->stdin_fd(), line.data() + sent, line.size() - sent);
    if (wrote < 0 && errno != EINTR) return absl::UnavailableError(absl::StrCat(name_, " ended"));
    if (wrote > 0) sent += static_cast<size_t>(wrote);
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ReadLine());
  ISOTHERM_ASSIGN_OR_RETURN(const json answer, ParseAnswer(name_, text));
  BenchSample sample;
  sample.time_to_first_token_ms = Number(answer, "time_to_first_token_ms");
  const double after_first = Number(answer, "tokens") - 1;
  const double decode_ms = Number(answer, "decode_ms");
  if (after_first <= 0 || decode_ms <= 0) {
    return absl::UnavailableError(absl::StrCat(name_, " said: ", text));
  }
  sample.time_per_token_ms = decode_ms / after_first;
  sample.tokens_per_second = 1000 * after_first / decode_ms;
  sample.bytes_per_token = Number(answer, "bytes_per_token");
  sample.active_share = Number(answer, "active_share");
  return sample;
}

absl::StatusOr<double> BenchProgram::ReadRate() {
  constexpr absl::string_view kJob = "{\"job\":\"read\"}\n";
  if (::write(child_->stdin_fd(), kJob.data(), kJob.size()) != static_cast<ssize_t>(kJob.size())) {
    return absl::UnavailableError(absl::StrCat(name_, " ended"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string line, ReadLine());
  ISOTHERM_ASSIGN_OR_RETURN(const json answer, ParseAnswer(name_, line));
  return Number(answer, "bytes_per_second");
}

std::unique_ptr<BenchSource> MakeProgramSource(std::shared_ptr<BenchProgram> program,
                                               std::string name, bool exact) {
  return std::make_unique<ProgramSource>(std::move(program), std::move(name), exact);
}

}  // namespace isotherm::cli
