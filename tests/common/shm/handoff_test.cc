#include "common/shm/handoff.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <future>

#include "common/shm/shared_memory.h"
#include "tests/common/shm/slot_pair.h"

namespace isotherm::shm {
namespace {

using std::chrono::milliseconds;

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

class HandoffTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "handoff-XXXXXX";
    directory_ = ::mkdtemp(name.data());
    server_ = *HandoffServer::Start(directory_);
  }
  void TearDown() override {
    server_.reset();
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
    std::filesystem::remove_all(directory_);
  }
  std::string Offer() {
    return server_->Offer(*CreateSealedMemory("a", 4096, {}), *CreateSealedMemory("b", 8192, {}),
                          [this](UniqueFd connection, pid_t pid) {
                            connection_ = std::move(connection);
                            taken_.set_value(pid);
                          });
  }
  absl::StatusOr<Handoff> Take(absl::string_view token) {
    return TakeHandoff(server_->path(), token, milliseconds(2000));
  }

  std::string directory_;
  std::unique_ptr<HandoffServer> server_;
  UniqueFd connection_;
  std::promise<pid_t> taken_;
};

TEST_F(HandoffTest, BothDescriptorsAndTheLivingConnectionArrive) {
  auto handoff = Take(Offer());
  ASSERT_TRUE(handoff.ok()) << handoff.status();
  EXPECT_TRUE(CheckSealedMemory(handoff->arena.get(), 4096).ok());
  EXPECT_TRUE(CheckSealedMemory(handoff->control.get(), 8192).ok());
  EXPECT_EQ(handoff->peer, OwnIdentity());
  EXPECT_NE(handoff->peer.start_ticks, 0u);
  EXPECT_EQ(taken_.get_future().get(), ::getpid());
  handoff->connection.Reset();
  char byte;
  EXPECT_EQ(::recv(connection_.get(), &byte, 1, 0), 0);  // the end of one is seen by the other
}

TEST_F(HandoffTest, ATokenWorksOnce) {
  const std::string token = Offer();
  EXPECT_TRUE(Take(token).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(Take(token).status()));
}

TEST_F(HandoffTest, WrongShortAndWithdrawnTokensAreRefused) {
  const std::string token = Offer();
  std::string wrong = token;
  wrong[31] ^= 1;
  EXPECT_TRUE(absl::IsPermissionDenied(Take(wrong).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(Take(std::string(32, '0')).status()));
  server_->Withdraw();
  EXPECT_TRUE(absl::IsPermissionDenied(Take(token).status()));
}

TEST_F(HandoffTest, ANewOfferReplacesTheOld) {
  const std::string old = Offer();
  const std::string token = Offer();
  EXPECT_NE(old, token);
  EXPECT_FALSE(Take(old).ok());
  EXPECT_TRUE(Take(token).ok());
}

TEST_F(HandoffTest, TheSocketIsOurUsersOnly) {
  struct stat info {};
  ASSERT_EQ(::stat(server_->path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(HandoffTest, AnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  const std::string token = Offer();
  ::chmod(directory_.c_str(), 0755);
  ::chmod(server_->path().c_str(), 0666);  // even when the file's mode would let it in
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(3);
    // Our own check of the server's user would refuse too, so this speaks by hand.
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, server_->path().c_str(), sizeof(name.sun_path) - 1);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)) != 0) ::_exit(4);
    (void)::send(fd.get(), token.data(), token.size(), MSG_NOSIGNAL);
    char byte;
    ::_exit(::recv(fd.get(), &byte, 1, 0) > 0 ? 1 : 0);
  }
  int outcome = 0;
  ASSERT_EQ(::waitpid(child, &outcome, 0), child);
  ASSERT_TRUE(WIFEXITED(outcome));
  EXPECT_EQ(WEXITSTATUS(outcome), 0);
  EXPECT_TRUE(Take(token).ok());  // the offer still stands for us
}

TEST_F(HandoffTest, NothingLeaksOverManyOffersAndRefusals) {
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 50; ++i) {
    const std::string token = Offer();
    EXPECT_FALSE(Take(std::string(32, 'x')).ok());
    if (i % 2 == 0) {
      EXPECT_TRUE(Take(token).ok());
      taken_.get_future().get();
      taken_ = {};
      connection_.Reset();
    }
  }
  server_->Withdraw();
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(HandoffTest, SocketsOfKilledProcessesAreRemovedAndLivingOnesKept) {
  const pid_t child = ::fork();
  if (child == 0) {
    auto killed = HandoffServer::Start(directory_);
    ::_exit(killed.ok() ? 0 : 1);  // no destructor runs, as with SIGKILL
  }
  ::waitpid(child, nullptr, 0);
  auto again = *HandoffServer::Start(directory_);
  size_t sockets = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_)) {
    ++sockets;
  }
  EXPECT_EQ(sockets, 2u);  // ours and the new one
}

TEST(HandoffPathTest, NoListenerAndLongPathsAreErrors) {
  EXPECT_TRUE(absl::IsUnavailable(
      TakeHandoff("/nonexistent.sock", std::string(32, 'x'), milliseconds(100)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(HandoffServer::Start(std::string(120, 'd')).status()));
}

}  // namespace
}  // namespace isotherm::shm
