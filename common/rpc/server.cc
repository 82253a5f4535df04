#include "common/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/exit_code.h"
#include "common/base/unique_fd.h"
#include "common/rpc/reflection_v1.h"

namespace isotherm::rpc {
namespace {

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

// True when a living process accepts on the socket.
bool SocketIsLive(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::strncpy(name.sun_path, path.c_str(), sizeof(name.sun_path) - 1);
  return fd.valid() && ::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0;
}

absl::Status PrepareSocketPath(const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un{}.sun_path)) {
    return WithExitCode(absl::InvalidArgumentError(
                            absl::StrCat("socket path '", path, "' has ", path.size(),
                                         " bytes, at most 107 work; choose a shorter --state-dir")),
                        ExitCode::kUsage);
  }
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode) || SocketIsLive(path)) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat(
            "'", path, "' is in use; stop the other process or choose another --listen")),
        ExitCode::kShortage);
  }
  ::unlink(path.c_str());
  return absl::OkStatus();
}

}  // namespace

Server::Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<grpc::Service*>& services) {
  std::unique_ptr<Server> server(new Server());
  grpc::EnableDefaultHealthCheckService(true);
  absl::string_view unix_path = options.listen;
  const bool is_unix = absl::ConsumePrefix(&unix_path, "unix:");
  if (is_unix) {
    server->unix_path_ = std::string(unix_path);
    if (absl::Status status = PrepareSocketPath(server->unix_path_); !status.ok()) return status;
  }
  if (options.reflection && (is_unix || IsLoopback(options.listen))) {
    static const bool initialised = [] {
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    (void)initialised;
    server->reflection_ = std::make_unique<ReflectionV1>();
  }

  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
  builder.SetMaxSendMessageSize(64 << 20);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port in use is an error
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024);
  for (grpc::Service* service : services) builder.RegisterService(service);
  if (server->reflection_ != nullptr)
    builder.RegisterCallbackGenericService(server->reflection_.get());
  const mode_t old_mask = ::umask(0177);
  server->server_ = builder.BuildAndStart();
  ::umask(old_mask);
  if (server->server_ == nullptr || (!is_unix && port <= 0)) {
    return WithExitCode(absl::ResourceExhaustedError(
                            absl::StrCat("cannot listen on '", options.listen,
                                         "': in use or not allowed; stop the other process or "
                                         "choose another address (port 0: any free one)")),
                        ExitCode::kShortage);
  }
  if (is_unix) {
    server->address_ = options.listen;
  } else {
    const size_t colon = options.listen.rfind(':');
    server->address_ = absl::StrCat(options.listen.substr(0, colon), ":", port);
  }
  if (server->reflection_ != nullptr)
    server->reflection_->SetUpstream(server->server_->InProcessChannel({}));
  server->SetServing(false);
  return server;
}

Server::~Server() {
  if (server_ != nullptr) Shutdown(std::chrono::milliseconds(0));
}

void Server::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
  server_->GetHealthCheckService()->SetServingStatus("", serving);
}

void Server::SetServing(absl::string_view service, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(std::string(service), serving);
}

void Server::Shutdown(std::chrono::milliseconds grace) {
  if (server_ == nullptr) return;
  SetServing(false);
  if (reflection_ != nullptr) reflection_->ClearUpstream();
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  server_.reset();
  if (!unix_path_.empty()) ::unlink(unix_path_.c_str());
}

}  // namespace isotherm::rpc
