#include "tests/integration/cluster.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/strings/str_split.h"
#include "common/base/check.h"
#include "common/rpc/channel.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

const char* const kNames[] = {"cpu-worker", "gpu-worker", "placement", "gateway"};

std::string FromEnvironment(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

std::string TestedDevice() { return FromEnvironment("ISOTHERM_TEST_DEVICE", "cpu"); }

std::vector<std::string> FlagsOfTheRun() {
  return absl::StrSplit(FromEnvironment("ISOTHERM_TEST_GPU_FLAGS", ""), ' ', absl::SkipEmpty());
}

}  // namespace

bool Cluster::OnGpu() { return TestedDevice() == "cuda"; }

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)) {
  std::string pattern = (std::filesystem::temp_directory_path() / "isotherm-XXXXXX").string();
  ISOTHERM_CHECK(::mkdtemp(pattern.data()) != nullptr);
  directory_ = pattern;
  for (const std::string& name : options_.start_order) {
    Start(name);
    children_.at(name)->WaitForLine("listening ", std::chrono::seconds(30));
  }
  for (const char* name : kNames) {
    if (children_.count(name) > 0) continue;
    if (std::string(name) != "placement" || options_.with_placement) Start(name);
  }
}

Cluster::~Cluster() {
  children_.clear();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::string Cluster::address(const std::string& name) const {
  return "unix:" + directory_ + "/" + name + ".sock";
}

void Cluster::Start(const std::string& name) {
  std::vector<std::string> command = {std::string(ISOTHERM_BINARY_DIR) + "/bin/isotherm-" + name,
                                      "--model", options_.model, "--listen", address(name)};
  const auto add = [&command](std::initializer_list<std::string> flags) {
    command.insert(command.end(), flags);
  };
  const std::vector<std::string>* extra = nullptr;
  if (name == "cpu-worker") {
    add({"--socket-dir", directory_, "--threads", std::to_string(options_.cpu_threads),
         "--placement", options_.with_placement ? address("placement") : ""});
    extra = &options_.cpu_flags;
  } else if (name == "gpu-worker") {
    add({"--cpu-worker", address("cpu-worker"), "--device", TestedDevice(), "--transport",
         options_.transport, "--threads", std::to_string(options_.gpu_threads), "--vram-budget",
         OnGpu() ? "auto" : options_.budget, "--placement",
         options_.with_placement ? address("placement") : ""});
    for (const std::string& flag : FlagsOfTheRun()) command.push_back(flag);
    extra = &options_.gpu_flags;
  } else if (name == "placement") {
    const auto own = [&](const std::string& other, const char* worker) {
      return other.empty() ? address(worker) : other;
    };
    add({"--gpu-worker", own(options_.gpu_for_placement, "gpu-worker"), "--cpu-worker",
         own(options_.cpu_for_placement, "cpu-worker"), "--state-dir", directory_ + "/state",
         "--follow", options_.follow ? "on" : "off"});
    if (OnGpu()) add({"--budget", options_.budget});
    if (!options_.profile_file.empty()) add({"--profile-file", options_.profile_file});
    extra = &options_.placement_flags;
  } else {
    add({"--gpu-worker", address("gpu-worker"), "--cpu-worker", address("cpu-worker"),
         "--placement", options_.with_placement ? address("placement") : ""});
    extra = &options_.gateway_flags;
  }
  command.insert(command.end(), extra->begin(), extra->end());
  children_.erase(name);
  children_[name] = std::make_unique<ChildProcess>(name, command, directory_ + "/" + name + ".log");
}

void Cluster::Kill(const std::string& name, int signal) {
  children_.at(name)->Signal(signal);
  if (signal == SIGKILL) children_.at(name)->WaitForExit(std::chrono::seconds(10));
}

bool Cluster::WaitReady(std::chrono::seconds timeout) {
  for (const char* name : kNames) {
    if (children_.count(name) == 0) continue;
    if (!children_.at(name)->WaitForLine("ready", timeout).has_value()) {
      std::cerr << name << " is not ready\n" << Logs();
      return false;
    }
  }
  const bool ready =
      WaitServing(timeout) && (!options_.with_placement || WaitForPlan(0, timeout).has_value());
  if (!ready) std::cerr << "cluster is not ready\n" << Logs();
  return ready;
}

bool Cluster::Stop() {
  bool clean = true;
  for (const char* name : {"gateway", "placement", "gpu-worker", "cpu-worker"}) {
    if (children_.count(name) == 0) continue;
    children_.at(name)->Signal(SIGTERM);
    const std::optional<int> status = children_.at(name)->WaitForExit(std::chrono::seconds(20));
    if (status != 0) {
      std::cerr << name << " ended with " << status.value_or(-1) << "\n"
                << children_.at(name)->Log();
      clean = false;
    }
  }
  return clean;
}

std::unique_ptr<v1::InferenceService::Stub> Cluster::Inference() const {
  return v1::InferenceService::NewStub(rpc::MakeChannel(address("gateway")));
}
std::unique_ptr<v1::PlacementService::Stub> Cluster::Placement() const {
  return v1::PlacementService::NewStub(rpc::MakeChannel(address("placement")));
}
std::unique_ptr<v1::WorkerService::Stub> Cluster::Worker(const std::string& name) const {
  return v1::WorkerService::NewStub(rpc::MakeChannel(address(name)));
}

v1::GenerateRequest Cluster::Greedy(const std::vector<int32_t>& prompt, int max_tokens,
                                    bool exact) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(max_tokens);
  request.mutable_output()->set_return_token_ids(true);
  request.set_exact(exact);
  return request;
}

Answer Cluster::Generate(const v1::GenerateRequest& request, std::chrono::seconds timeout) const {
  OpenStream stream(rpc::MakeChannel(address("gateway")), request, {.deadline = timeout});
  return stream.Finish();
}

std::optional<v1::DescribeResponse> Cluster::Describe(const std::string& worker) const {
  const auto stub = Worker(worker);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::DescribeRequest request;
  request.set_protocol_version(1);
  v1::DescribeResponse response;
  if (!stub->Describe(&context, request, &response).ok()) return std::nullopt;
  return response;
}

bool Cluster::WaitServing(std::chrono::seconds timeout) const {
  // ModelInfo is answered from the start; READY or DEGRADED means requests are admitted.
  const auto stub = Inference();
  return Eventually(timeout, [&] {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    v1::ModelInfoResponse response;
    return stub->ModelInfo(&context, v1::ModelInfoRequest(), &response).ok() &&
           response.models_size() == 1 &&
           (response.models(0).state() == v1::MODEL_STATE_READY ||
            response.models(0).state() == v1::MODEL_STATE_DEGRADED);
  });
}

std::optional<v1::PlacementPlan> Cluster::WaitForPlan(int64_t other_than,
                                                      std::chrono::seconds timeout) const {
  const auto stub = Placement();
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  const auto stream = stub->Watch(&context, v1::WatchRequest());
  v1::WatchResponse event;
  while (stream->Read(&event)) {
    if (event.state() == v1::PLAN_STATE_LIVE && event.plan().epoch() != other_than)
      return event.plan();
  }
  return std::nullopt;
}

std::string Cluster::Logs() const {
  std::string text;
  for (const auto& [name, child] : children_) text += "== " + name + "\n" + child->Log();
  return text;
}

}  // namespace isotherm::integration
