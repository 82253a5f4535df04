#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "isotherm/v1/inference.grpc.pb.h"
#include "isotherm/v1/placement.grpc.pb.h"
#include "isotherm/v1/worker.grpc.pb.h"
#include "tests/integration/child_process.h"
#include "tests/integration/open_stream.h"

namespace isotherm::integration {

struct ClusterOptions {
  std::string model;
  std::string transport = "shm";
  std::string budget = "auto";  // hot bytes, or auto
  int cpu_threads = 2, gpu_threads = 2;
  std::string profile_file;  // empty: what lies beside the model
  std::vector<std::string> gpu_flags, cpu_flags, gateway_flags, placement_flags;
  bool with_placement = true;
  bool follow = false;  // neurons follow the traffic by themselves
  // Addresses under which the placement_service finds the workers; empty: their own.
  std::string gpu_for_placement, cpu_for_placement;
  // Each is started once the one before listens; empty: all at once.
  std::vector<std::string> start_order;
};

// The four real processes on Unix sockets in a private directory. Starts them in the constructor;
// WaitReady() waits.
class Cluster {
 public:
  // Whether the tests were told to take a GPU, by ISOTHERM_TEST_DEVICE. There the hot neurons'
  // budget is the placement's to set: --vram-budget counts everything.
  static bool OnGpu();

  explicit Cluster(ClusterOptions options);
  ~Cluster();

  // True when every process is ready and the first plan is live. Prints the logs when not.
  bool WaitReady(std::chrono::seconds timeout = std::chrono::seconds(60));

  // Name: "cpu-worker", "gpu-worker", "placement", "gateway".
  void Start(const std::string& name);
  void Kill(const std::string& name, int signal);
  ChildProcess& process(const std::string& name) { return *children_.at(name); }
  bool Stop();  // SIGTERM in order; true when all ended with 0

  std::string address(const std::string& name) const;
  const std::string& directory() const { return directory_; }

  std::unique_ptr<isotherm::v1::InferenceService::Stub> Inference() const;
  std::unique_ptr<isotherm::v1::PlacementService::Stub> Placement() const;
  std::unique_ptr<isotherm::v1::WorkerService::Stub> Worker(const std::string& name) const;

  // Greedy continuation of `prompt`, at most `max_tokens`.
  static isotherm::v1::GenerateRequest Greedy(const std::vector<int32_t>& prompt, int max_tokens,
                                              bool exact = false);
  Answer Generate(const isotherm::v1::GenerateRequest& request,
                  std::chrono::seconds timeout = std::chrono::seconds(60)) const;

  // What the worker says of itself; nothing when it does not answer within 5 s.
  std::optional<isotherm::v1::DescribeResponse> Describe(const std::string& worker) const;

  // Waits until the gateway's health says SERVING.
  bool WaitServing(std::chrono::seconds timeout) const;
  // Waits until the placement's live plan has another epoch than `epoch`; returns it.
  std::optional<isotherm::v1::PlacementPlan> WaitForPlan(int64_t other_than,
                                                         std::chrono::seconds timeout) const;

  std::string Logs() const;

 private:
  ClusterOptions options_;
  std::string directory_;
  std::map<std::string, std::unique_ptr<ChildProcess>> children_;
};

}  // namespace isotherm::integration
