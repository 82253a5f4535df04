#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "placement_service/plan/plan_publisher.h"
#include "placement_service/plan/plan_record.h"

namespace isotherm {

struct PlacementOptions {
  std::string model;
  std::string listen;
  std::string gpu_worker;
  std::string cpu_worker;  // empty: there is none
  std::string state_dir;
  int64_t budget_bytes = kAutoBudget;
  std::string profile;       // empty: "chat" or the first
  std::string profile_file;  // empty: the one beside the model, if there is one
  bool follow = true;        // neurons follow the traffic by themselves
  PlanObjective objective = PlanObjective::kAuto;
  double half_life_tokens = LiveProfileOptions().half_life_tokens;
  double moves_per_second = AutoMoverOptions().moves_per_second;
  std::string cpus;  // that this process keeps to; empty: as started
  std::string log_level = "info";
  bool supervised = false;
};

// Sets `exit_code` when --help or --version was answered. InvalidArgument (exit code 64) says what
// is wrong and where help is.
absl::StatusOr<PlacementOptions> ParsePlacementOptions(int argc, char** argv,
                                                       std::optional<int>* exit_code);

}  // namespace isotherm
