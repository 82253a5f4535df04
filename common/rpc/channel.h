#pragma once

#include <grpcpp/channel.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::rpc {

inline constexpr int kInternalMessageBytes = 64 << 20;

// Between two attempts at a stream that a peer ended; doubled up to the latter.
inline constexpr auto kFirstBackoff = std::chrono::milliseconds(50);
inline constexpr auto kMaxBackoff = std::chrono::milliseconds(1000);

// Channel to `address`: "unix:/path/to.sock" or "host:port", plaintext (loopback or a 0600 socket).
// It reconnects on its own with a back-off of at most 1 s.
std::shared_ptr<grpc::Channel> MakeChannel(absl::string_view address);

}  // namespace isotherm::rpc
