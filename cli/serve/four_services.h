#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/config/serve_options.h"
#include "cli/supervise/run_dir.h"
#include "cli/supervise/server_record.h"
#include "cli/supervise/supervisor.h"
#include "common/threading/core_plan.h"

namespace isotherm::cli {

struct FourServices {
  std::vector<ServiceSpec> specs;  // cpu-worker, gpu-worker, placement, gateway
  ServerRecord record;             // their addresses
};

// The four processes of one server: their programs in `program_dir`, their command lines, and the
// Unix sockets in `run_dir` by which they meet. The gateway listens on options.grpc_listen, or on a
// socket, too, when that is empty. Plans are kept in `plan_dir`. Where there is a core plan,
// compute threads are bound to its CPUs and everything else is kept off them.
FourServices MakeFourServices(const ServeOptions& options, const std::filesystem::path& model,
                              const std::filesystem::path& program_dir, const RunDir& run_dir,
                              const std::filesystem::path& plan_dir, const CorePlan& cores = {});

// The core plan for this host: empty unless a GPU computes the hot neurons and there are CPUs to
// divide.
CorePlan CoresBesideGpu(const ServeOptions& options);

}  // namespace isotherm::cli
