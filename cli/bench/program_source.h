#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/bench_runner.h"
#include "cli/supervise/child_process.h"

namespace isotherm::cli {

// A program that measures on request: one JSON object a line on stdin and stdout, as
// isotherm-bench-local describes. It computes nothing between two jobs, so that it can be
// interleaved with others. Not thread-safe; the program ends with the object.
class BenchProgram {
 public:
  // Starts it and waits until it has loaded. NotFound when it cannot be run; Unavailable with its
  // own words when it fails.
  static absl::StatusOr<std::shared_ptr<BenchProgram>> Start(const std::vector<std::string>& argv);

  const std::string& name() const { return name_; }
  absl::StatusOr<BenchSample> Generate(const BenchCase& bench, bool exact);
  // Bytes a second of a linear read with the program's threads.
  absl::StatusOr<double> ReadRate();

 private:
  BenchProgram() = default;
  absl::StatusOr<std::string> ReadLine();

  std::unique_ptr<ChildProcess> child_;
  std::string name_;
  std::string received_;
};

// One request at a time only.
std::unique_ptr<BenchSource> MakeProgramSource(std::shared_ptr<BenchProgram> program,
                                               std::string name, bool exact);

}  // namespace isotherm::cli
