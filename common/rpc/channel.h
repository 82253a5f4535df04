#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::rpc {

inline constexpr int kInternalMessageBytes = 64 << 20;

// Channel to `address`: "unix:/path/to.sock" or "host:port", plaintext (loopback or a 0600 socket).
// It reconnects on its own with a back-off of at most 1 s.
std::shared_ptr<grpc::Channel> MakeChannel(absl::string_view address);

}  // namespace isotherm::rpc
