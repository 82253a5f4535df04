#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace grpc {
class Server;
}

namespace isotherm::rpc {

class ReflectionV1;

struct ServerOptions {
  // "unix:/path.sock" (made 0600; a stale socket file of a dead process is replaced) or
  // "host:port", port 0 for any free one.
  std::string listen;
  int max_receive_bytes = 64 << 20;
  bool reflection = true;  // refused off loopback by Start()
};

// One gRPC listener with the standard health service ("" and the full name of each service given)
// and reflection, v1 and v1alpha. Owned by a service's server.cc. Thread-safe.
class Server {
 public:
  // Unavailable-type failures (port in use, socket path too long) are ResourceExhausted with exit
  // code kShortage and the address in the text. `services` outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services);
  ~Server();

  // Where clients connect: as given, with the real port.
  const std::string& address() const { return address_; }

  void SetServing(bool serving);
  // For one full service name, or "" and every other name.
  void SetServing(absl::string_view service, bool serving);

  // Not serving, then no new calls; calls still running after `grace` are cancelled. Blocks.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  Server();
  std::string address_;
  std::string unix_path_;
  std::unique_ptr<ReflectionV1> reflection_;  // outlives the server
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace isotherm::rpc
