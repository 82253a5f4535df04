#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "tests/fakes/fake_step_workers.h"

namespace isotherm {

namespace rpc {
class Server;
}

// FakeStepWorkers behind two real gRPC ports, stepping on its own. Thread-safe.
class FakeWorkerProcess {
 public:
  explicit FakeWorkerProcess(const FakeStepWorkers::Options& options);
  ~FakeWorkerProcess();

  const std::string& gpu_address() const;
  const std::string& cpu_address() const;

  // Runs `count` steps and then waits; negative: no limit (the default).
  void AllowSteps(int64_t count);
  // Breaks the stream as a death would; a new instance answers the next Execute.
  void KillGpu();
  // With everything held still.
  template <typename F>
  auto With(F f) {
    absl::MutexLock lock(&mu_);
    return f(workers_);
  }
  // Blocks until f(workers) is true; false after 10 s.
  template <typename F>
  bool WaitUntil(F f) {
    absl::MutexLock lock(&mu_);
    const auto condition = [&] { return f(workers_); };
    return mu_.AwaitWithTimeout(absl::Condition(&condition), absl::Seconds(10));
  }

 private:
  class Service;
  class Streams;
  void Loop();

  absl::Mutex mu_;
  FakeStepWorkers workers_;
  std::unique_ptr<Streams> streams_;
  int64_t allowed_ = -1;
  bool pending_ = false;
  bool stopping_ = false;
  std::unique_ptr<Service> gpu_service_, cpu_service_;
  std::unique_ptr<rpc::Server> gpu_server_, cpu_server_;
  std::thread thread_;
};

}  // namespace isotherm
