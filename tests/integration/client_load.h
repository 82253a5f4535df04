#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/cluster.h"

namespace isotherm::integration {

// A prompt and the oracle's continuation, as long as any request asks for.
struct GoldenRequest {
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;
};

// Clients that keep requests in flight and judge every answer: it is golden, or it ends with one
// error and a prefix of golden. An error before the first token may say that no worker is there,
// that two workers died on it or that the gateway drains; after it, only that the answer was cut.
// Anything else is a failure of the running test.
class ClientLoad {
 public:
  struct Counts {
    int64_t tokens = 0;    // received
    int64_t finished = 0;  // golden to the end
    int64_t failed = 0;    // ended with one of the errors above
    std::string first_error;
  };

  ClientLoad(const Cluster& cluster, std::vector<GoldenRequest> requests, int num_clients);
  ~ClientLoad();
  ClientLoad(const ClientLoad&) = delete;
  ClientLoad& operator=(const ClientLoad&) = delete;

  // From now on the gateway may stop: gRPC resets a call that reaches a server in its last moments,
  // before any event, and the client sees CANCELLED.
  void ExpectGatewayStop() { gateway_stops_ = true; }

  Counts counts() const;
  // False when the clients did not get `count` tokens more within `timeout`.
  bool WaitForTokens(int64_t count, std::chrono::milliseconds timeout = std::chrono::seconds(30));
  // Lets what runs end; nothing is asked any more.
  Counts Stop();

 private:
  void Run(size_t client);
  void Judge(const GoldenRequest& request, const Answer& answer);

  const Cluster& cluster_;
  const std::vector<GoldenRequest> requests_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> gateway_stops_{false};
  mutable std::mutex mu_;
  std::condition_variable changed_;
  Counts counts_;
  std::vector<std::thread> clients_;
};

}  // namespace isotherm::integration
