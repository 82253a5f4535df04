// build/bench/isotherm-probe --out probe.jsonl
// Asks the machine what the design assumes of it: one JSON object a line, appended as each figure
// ends, in under three minutes. `--list` names the figures; `--only a,b` runs some.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/probe/child_runner.h"
#include "bench/probe/figure.h"
#include "bench/probe/line.h"

namespace isotherm::probe {
namespace {

std::vector<Figure> AllFigures() {
  std::vector<Figure> figures = CpuFigures();
  for (Figure& figure : CudaFigures()) figures.push_back(std::move(figure));
  return figures;
}

// Ends early when the time is up: the figures come in order of weight.
int RunAll(const std::vector<std::string>& only, std::chrono::seconds total, int out_fd) {
  const auto start = std::chrono::steady_clock::now();
  int failed = 0;
  for (const Figure& figure : AllFigures()) {
    if (!only.empty() && std::find(only.begin(), only.end(), figure.name) == only.end()) continue;
    const auto left = std::chrono::duration_cast<std::chrono::seconds>(
        total - (std::chrono::steady_clock::now() - start));
    if (left.count() < 2) {
      Line(figure.name).Set("error", "not run: the total time is used up");
      ++failed;
      continue;
    }
    const ChildEnd end =
        RunInChild(figure, std::min(left, std::chrono::seconds(figure.limit_s)), out_fd);
    Line line(figure.name);
    line.Set("seconds", end.seconds);
    if (end.timed_out) line.Set("error", "stopped at its time limit");
    if (!end.timed_out && end.exit_code != 0) {
      line.Set("error", "ended with code " + std::to_string(end.exit_code));
    }
    if (end.timed_out || end.exit_code != 0) ++failed;
  }
  Line("all")
      .Set("failed", failed)
      .Set("seconds",
           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace isotherm::probe

int main(int argc, char** argv) {
  using namespace isotherm::probe;  // NOLINT
  std::string out = "-", figure_name;
  std::vector<std::string> only;
  int total_s = 175;
  bool list = false;
  CLI::App app("Measures what this machine's memory, pages, PCIe and GPU can do, as JSON lines.");
  app.add_option("--out", out, "file to append to; -: stdout")->capture_default_str();
  app.add_option("--only", only, "these figures only")->delimiter(',');
  app.add_option("--total-s", total_s, "stop starting figures after this")->capture_default_str();
  app.add_flag("--list", list, "name the figures");
  app.add_option("--figure", figure_name)->group("");  // what RunInChild starts
  CLI11_PARSE(app, argc, argv);

  for (const Figure& figure : AllFigures()) {
    if (list)
      std::printf("%-24s %3d s  %s\n", figure.name.c_str(), figure.limit_s,
                  figure.question.c_str());
    if (figure.name != figure_name) continue;
    figure.run();
    return 0;
  }
  if (list) return 0;
  if (!figure_name.empty()) {
    std::fprintf(stderr, "no figure is called %s; see --list\n", figure_name.c_str());
    return 64;
  }
  if (out != "-") {
    const int fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
      std::fprintf(stderr, "cannot open %s for appending\n", out.c_str());
      return 73;
    }
    // Lines of this process go there too.
    ::dup2(fd, STDOUT_FILENO);
    ::close(fd);
  }
  return RunAll(only, std::chrono::seconds(total_s), STDOUT_FILENO);
}
