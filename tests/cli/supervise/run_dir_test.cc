#include "cli/supervise/run_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "cli/supervise/server_record.h"
#include "tests/cli/fakes/fake_programs.h"

namespace isotherm::cli {
namespace {

namespace fs = std::filesystem;

TEST(RunDirTest, IsPrivateAndGoneAfterwards) {
  const FakePrograms temp;
  fs::path path;
  {
    const auto dir = RunDir::Create(temp.dir() / "state");
    ASSERT_TRUE(dir.ok()) << dir.status();
    path = (*dir)->path();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    EXPECT_TRUE(RunDir::IsAlive(path));
    EXPECT_LT((*dir)->SocketAddress("cpu-worker").size(), 100u);
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(RunDirTest, RemovesWhatADeadServerLeft) {
  const FakePrograms temp;
  const fs::path dead = temp.dir() / "run/dead";
  fs::create_directories(dead);
  std::ofstream(dead / "lock") << "";
  std::ofstream(dead / "gateway.sock") << "";
  const auto alive = RunDir::Create(temp.dir());
  ASSERT_TRUE(alive.ok());
  EXPECT_FALSE(fs::exists(dead));
  const auto second = RunDir::Create(temp.dir());
  ASSERT_TRUE(second.ok());
  EXPECT_TRUE(fs::exists((*alive)->path())) << "a running server's folder was removed";
}

TEST(RunDirTest, UsesAShortFolderForSocketsWhenTheStateFolderIsLong) {
  const FakePrograms temp;
  fs::path sockets;
  {
    const auto dir = RunDir::Create(temp.dir() / std::string(120, 'x'));
    ASSERT_TRUE(dir.ok()) << dir.status();
    sockets = (*dir)->socket_dir();
    EXPECT_LT(sockets.string().size(), 40u);
    EXPECT_TRUE(fs::is_directory(sockets));
  }
  EXPECT_FALSE(fs::exists(sockets));
}

TEST(RunDirTest, SaysWhichFolderCannotBeMade) {
  const auto dir = RunDir::Create("/proc/nowhere");
  ASSERT_FALSE(dir.ok());
  EXPECT_NE(dir.status().message().find("/proc/nowhere"), std::string::npos) << dir.status();
}

TEST(ServerRecordTest, IsReadWhileItsServerLives) {
  const FakePrograms temp;
  {
    const auto dir = RunDir::Create(temp.dir());
    ASSERT_TRUE(dir.ok());
    const ServerRecord record{.pid = 42,
                              .run_dir = (*dir)->path().string(),
                              .model = "/m.gguf",
                              .gateway = "127.0.0.1:8001",
                              .ready = true};
    ASSERT_TRUE(WriteServerRecord(temp.dir(), record).ok());
    const auto read = ReadServerRecord(temp.dir());
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(read->pid, 42);
    EXPECT_EQ(read->gateway, "127.0.0.1:8001");
    EXPECT_TRUE(read->ready);
  }
  EXPECT_FALSE(ReadServerRecord(temp.dir()).has_value());
}

TEST(ServerRecordTest, GarbageIsNoRecord) {
  const FakePrograms temp;
  for (const char* text : {"", "{", "[]", "{\"pid\":\"x\"}", "{\"pid\":1,\"run_dir\":7}", "null"}) {
    std::ofstream(temp.dir() / "serve.json") << text;
    EXPECT_FALSE(ReadServerRecord(temp.dir()).has_value()) << text;
  }
}

}  // namespace
}  // namespace isotherm::cli
