#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/client/inference_client.h"
#include "cli/config/serve_options.h"
#include "cli/serve/interrupts.h"
#include "cli/serve/local_server.h"
#include "cli/serve/server_view.h"
#include "cli/ui/console.h"

namespace isotherm::cli {

// Exit code 130 for a verb that SIGINT ended.
absl::Status InterruptedError();

// A gateway to talk to: the one at a given address, the one that runs on this host's state folder
// with the same model, or one started for as long as the session lasts.
class Session {
 public:
  using MakeClient = std::unique_ptr<InferenceClient> (*)(absl::string_view address);

  // Blocks until the gateway is ready; `interrupts` end the wait. `url` may be empty.
  static absl::StatusOr<std::unique_ptr<Session>> Open(const ServeOptions& options,
                                                       const std::string& url, Console& console,
                                                       Interrupts& interrupts,
                                                       MakeClient make_client);
  // Stops the server that the session started.
  ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  InferenceClient& client() { return *client_; }
  // The first model served. Has to be asked for: Unavailable.
  absl::StatusOr<ServedModel> Model();
  const std::string& address() const { return address_; }

 private:
  Session() = default;
  absl::Status StartServer(const ServeOptions& options, const std::filesystem::path& model,
                           Console& console, Interrupts& interrupts);

  std::string address_;
  std::unique_ptr<ServerView> view_;
  std::unique_ptr<LocalServer> server_;
  std::unique_ptr<InferenceClient> client_;
};

}  // namespace isotherm::cli
