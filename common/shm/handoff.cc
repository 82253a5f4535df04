#include "common/shm/handoff.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {
namespace {

constexpr std::chrono::milliseconds kTokenTimeout{1000};
constexpr absl::string_view kPrefix = "arena-";
constexpr absl::string_view kSuffix = ".sock";

std::string RandomHex() {
  std::array<char, kHandoffTokenChars / 2> bytes;
  ISOTHERM_CHECK(::getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

bool EqualInConstantTime(absl::string_view a, absl::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

absl::StatusOr<sockaddr_un> SocketName(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket path '", path, "' has ", path.size(),
                     " bytes, at most 107 work; choose a shorter --socket-dir"));
  }
  std::memcpy(name.sun_path, path.data(), path.size());
  return name;
}

void SetTimeout(int fd, std::chrono::milliseconds timeout) {
  const timeval time{.tv_sec = timeout.count() / 1000,
                     .tv_usec = static_cast<suseconds_t>(timeout.count() % 1000 * 1000)};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
}

// The other end's pid, when it belongs to our user.
absl::StatusOr<pid_t> CheckPeer(int fd) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return absl::PermissionDeniedError(absl::StrCat("SO_PEERCRED: ", std::strerror(errno)));
  }
  if (credentials.uid != ::geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("the other end belongs to user ", credentials.uid, ", want ", ::geteuid()));
  }
  return credentials.pid;
}

bool SendDescriptors(int socket, int arena, int control) {
  char byte = 1;
  iovec data{&byte, 1};
  const std::array<int, 2> fds{arena, control};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(fds))> buffer{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = buffer.data();
  message.msg_controllen = buffer.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(fds));
  std::memcpy(CMSG_DATA(header), fds.data(), sizeof(fds));
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

absl::StatusOr<std::pair<UniqueFd, UniqueFd>> ReceiveDescriptors(int socket) {
  char byte = 0;
  iovec data{&byte, 1};
  std::array<int, 2> fds{-1, -1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(fds))> buffer{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = buffer.data();
  message.msg_controllen = buffer.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) {
    return absl::UnavailableError(
        absl::StrCat("no descriptors came from the cpu_worker: ", std::strerror(errno)));
  }
  if (got == 0) return absl::PermissionDeniedError("the cpu_worker refused the handoff token");
  // Whatever came is owned before anything is refused, so that nothing leaks.
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  size_t count = 0;
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    ISOTHERM_CHECK(count <= fds.size());  // the kernel fills no more than the buffer holds
    std::memcpy(fds.data(), CMSG_DATA(header), count * sizeof(int));
  }
  std::pair<UniqueFd, UniqueFd> received{UniqueFd(fds[0]), UniqueFd(fds[1])};
  if (count != fds.size() || (message.msg_flags & MSG_CTRUNC) != 0) {
    return absl::InternalError(absl::StrCat("got ", count, " descriptors, want 2"));
  }
  return received;
}

// The token, or what came of it within the timeout.
std::string ReceiveToken(int socket) {
  std::string token(kHandoffTokenChars, '\0');
  size_t have = 0;
  const auto deadline = std::chrono::steady_clock::now() + kTokenTimeout;
  while (have < token.size() && std::chrono::steady_clock::now() < deadline) {
    const ssize_t got = ::recv(socket, token.data() + have, token.size() - have, 0);
    if (got <= 0) break;
    have += static_cast<size_t>(got);
  }
  token.resize(have);
  return token;
}

// Those of processes that were killed: nobody accepts on them.
void RemoveStaleSockets(const std::string& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const std::string file = entry.path().filename().string();
    if (!absl::StartsWith(file, kPrefix) || !absl::EndsWith(file, kSuffix)) continue;
    const absl::StatusOr<sockaddr_un> name = SocketName(entry.path().string());
    UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!name.ok() || !probe.valid()) continue;
    if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&*name), sizeof(*name)) != 0 &&
        errno == ECONNREFUSED) {
      ::unlink(entry.path().c_str());
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandoffServer>> HandoffServer::Start(const std::string& directory) {
  RemoveStaleSockets(directory);
  const std::string path =
      absl::StrCat(directory, "/", kPrefix, RandomHex().substr(0, 16), kSuffix);
  ISOTHERM_ASSIGN_OR_RETURN(const sockaddr_un name, SocketName(path));
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!listener.valid() || !stop.valid()) {
    return absl::ResourceExhaustedError(absl::StrCat("socket: ", std::strerror(errno)));
  }
  // Nobody can connect before listen(), so the mode is in force from the first connection on.
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(listener.get(), 4) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot listen on '", path, "': ", std::strerror(error), "; give a writable --socket-dir"));
  }
  return std::unique_ptr<HandoffServer>(
      new HandoffServer(std::move(listener), std::move(stop), path));
}

HandoffServer::HandoffServer(UniqueFd listener, UniqueFd stop, std::string path)
    : listener_(std::move(listener)), stop_event_(std::move(stop)), path_(std::move(path)) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "shm-handoff");
    Loop();
  });
}

HandoffServer::~HandoffServer() {
  const uint64_t one = 1;
  ISOTHERM_CHECK(::write(stop_event_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
  ::unlink(path_.c_str());
}

std::string HandoffServer::Offer(UniqueFd arena, UniqueFd control, Taken taken) {
  auto standing = std::make_unique<Standing>(
      Standing{RandomHex(), std::move(arena), std::move(control), std::move(taken)});
  std::string token = standing->token;
  absl::MutexLock lock(&mu_);
  standing_ = std::move(standing);
  return token;
}

void HandoffServer::Withdraw() {
  absl::MutexLock lock(&mu_);
  standing_.reset();
}

void HandoffServer::Loop() {
  while (true) {
    std::array<pollfd, 2> fds = {{{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[1].revents != 0) return;
    UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection.valid()) {
      Serve(std::move(connection));
    } else if (errno == EMFILE || errno == ENFILE) {
      pollfd stop{stop_event_.get(), POLLIN, 0};  // out of descriptors: try again, do not spin
      if (::poll(&stop, 1, 50) > 0) return;
    }
  }
}

void HandoffServer::Serve(UniqueFd connection) {
  const absl::StatusOr<pid_t> peer = CheckPeer(connection.get());
  if (!peer.ok()) return;
  SetTimeout(connection.get(), kTokenTimeout);
  const std::string token = ReceiveToken(connection.get());
  std::unique_ptr<Standing> taken;
  {
    absl::MutexLock lock(&mu_);
    if (standing_ == nullptr || !EqualInConstantTime(token, standing_->token)) return;
    taken = std::move(standing_);
  }
  if (!SendDescriptors(connection.get(), taken->arena.get(), taken->control.get())) return;
  taken->taken(std::move(connection), *peer);
}

absl::StatusOr<Handoff> TakeHandoff(const std::string& path, absl::string_view token,
                                    std::chrono::milliseconds timeout) {
  ISOTHERM_ASSIGN_OR_RETURN(const sockaddr_un name, SocketName(path));
  Handoff handoff;
  handoff.connection = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int fd = handoff.connection.get();
  if (fd < 0) return absl::ResourceExhaustedError(absl::StrCat("socket: ", std::strerror(errno)));
  SetTimeout(fd, timeout);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot reach the cpu_worker's handoff socket: ", std::strerror(errno),
                     "; both workers need the same --socket-dir"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const pid_t peer, CheckPeer(fd));
  if (SharesPidNamespace(peer)) handoff.peer = ProcessIdentityOf(peer);
  if (::send(fd, token.data(), token.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(token.size())) {
    return absl::UnavailableError(absl::StrCat("handoff: ", std::strerror(errno)));
  }
  ISOTHERM_ASSIGN_OR_RETURN(auto descriptors, ReceiveDescriptors(fd));
  handoff.arena = std::move(descriptors.first);
  handoff.control = std::move(descriptors.second);
  return handoff;
}

}  // namespace isotherm::shm
