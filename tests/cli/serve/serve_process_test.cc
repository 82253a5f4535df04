// The `isotherm` command itself, with programs beside it that stand in for the four services.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>

#include <filesystem>
#include <fstream>
#include <system_error>

#include "cli/supervise/server_record.h"
#include "common/base/unique_fd.h"
#include "tests/cli/fakes/command.h"
#include "tests/cli/fakes/fake_programs.h"

namespace isotherm::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const char* const kServices[] = {"isotherm-cpu-worker", "isotherm-gpu-worker", "isotherm-placement",
                                 "isotherm-gateway"};

// Whether the process ends within `timeout`; at once when it is gone already.
bool EndsWithin(pid_t pid, std::chrono::milliseconds timeout) {
  const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid()) return true;
  pollfd end{fd.get(), POLLIN, 0};
  return ::poll(&end, 1, static_cast<int>(timeout.count())) == 1;
}

class ServeProcessTest : public ::testing::Test {
 protected:
  ServeProcessTest() {
    // A program of its own there, for services are looked for beside it; a link where possible.
    std::error_code error;
    fs::create_hard_link(ISOTHERM_CLI, programs_.dir() / "isotherm", error);
    if (error) fs::copy_file(ISOTHERM_CLI, programs_.dir() / "isotherm");
    for (const char* service : kServices) programs_.Add(service, "listen pid ready wait");
    std::ofstream(programs_.dir() / "m.gguf") << "weights";
  }
  void UseEchoGateway() {
    for (const char* service : {"isotherm-gateway", "isotherm-placement"}) {
      fs::remove(programs_.dir() / service);
      fs::create_symlink(ISOTHERM_FAKE_GATEWAY, programs_.dir() / service);
    }
  }
  fs::path state_dir() const { return programs_.dir() / "state"; }

  Command Isotherm(std::vector<std::string> args) {
    args.insert(args.end(), {"--state-dir", state_dir().string()});
    return Command((programs_.dir() / "isotherm").string(), args);
  }
  Command Serve(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"serve", (programs_.dir() / "m.gguf").string(),
                                     "--grpc-listen", "127.0.0.1:0"};
    args.insert(args.end(), more.begin(), more.end());
    return Isotherm(std::move(args));
  }
  std::vector<pid_t> ServicePids() const {
    std::vector<pid_t> pids;
    for (const char* service : kServices) {
      const std::string text = programs_.Read(std::string(service) + ".pid");
      if (!text.empty()) pids.push_back(std::atoi(text.c_str()));
    }
    return pids;
  }
  size_t NumRunDirs() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(state_dir() / "run"), fs::directory_iterator()));
  }

  FakePrograms programs_;
};

TEST_F(ServeProcessTest, StartsFourTellsWhereAndStopsInOrder) {
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  const auto record = ReadServerRecord(state_dir());
  ASSERT_TRUE(record.has_value());
  EXPECT_EQ(record->pid, serve.pid());
  EXPECT_TRUE(record->ready);
  EXPECT_THAT(record->cpu_worker, HasSubstr("unix:"));
  EXPECT_EQ(ServicePids().size(), 4u);
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0) << serve.err();
  const std::string stopped = programs_.Read("stopped");
  EXPECT_EQ(stopped.substr(0, stopped.find('\n')), "isotherm-gateway");
  EXPECT_EQ(std::count(stopped.begin(), stopped.end(), '\n'), 4);
  EXPECT_EQ(NumRunDirs(), 0u);
  EXPECT_FALSE(fs::exists(state_dir() / "serve.json"));
}

TEST_F(ServeProcessTest, RestartsAKilledWorker) {
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  const pid_t worker = std::atoi(programs_.Read("isotherm-cpu-worker.pid").c_str());
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  ASSERT_TRUE(serve.ReadUntilErr("all services are ready again")) << serve.err();
  EXPECT_THAT(serve.err(), HasSubstr("cpu-worker ended with signal 9"));
  serve.Signal(SIGINT);
  EXPECT_EQ(serve.Wait(), 0);
}

TEST_F(ServeProcessTest, PassesOnABadModelsExitCodeWithReasonAndRemedy) {
  programs_.Script("isotherm-gpu-worker", "listen error:m.gguf-is-cut-short exit:65");
  Command serve = Serve();
  EXPECT_EQ(serve.Wait(), 65);
  EXPECT_THAT(serve.err(), HasSubstr("error: gpu-worker: m.gguf-is-cut-short"));
  EXPECT_THAT(serve.err(), HasSubstr("try: isotherm models verify"));
  for (const pid_t pid : ServicePids()) EXPECT_TRUE(EndsWithin(pid, std::chrono::seconds(0)));
}

TEST_F(ServeProcessTest, LeavesNoOrphanWhenItIsKilled) {
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  const std::vector<pid_t> pids = ServicePids();
  serve.Signal(SIGKILL);
  for (const pid_t pid : pids) EXPECT_TRUE(EndsWithin(pid, std::chrono::seconds(1))) << pid;
  EXPECT_EQ(serve.Wait(), 1000 + SIGKILL);
  EXPECT_FALSE(ReadServerRecord(state_dir()).has_value());
  EXPECT_EQ(NumRunDirs(), 1u);
  Command again = Serve();
  ASSERT_TRUE(again.ReadUntilOut("ask it")) << again.err();
  EXPECT_EQ(NumRunDirs(), 1u) << "the dead server's folder is still there";
  again.Signal(SIGTERM);
  EXPECT_EQ(again.Wait(), 0);
}

TEST_F(ServeProcessTest, RefusesASecondServerOnOneStateFolder) {
  Command first = Serve();
  ASSERT_TRUE(first.ReadUntilOut("ask it")) << first.err();
  Command second = Serve();
  EXPECT_EQ(second.Wait(), 71);
  EXPECT_THAT(second.err(), HasSubstr("--state-dir"));
  EXPECT_TRUE(ReadServerRecord(state_dir()).has_value()) << "the first server's record is gone";
  first.Signal(SIGTERM);
  EXPECT_EQ(first.Wait(), 0);
}

TEST_F(ServeProcessTest, ASecondSignalStopsAtOnce) {
  programs_.Script("isotherm-gateway", "listen pid ready stuck");
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  serve.Signal(SIGTERM);
  ASSERT_TRUE(serve.ReadUntilErr("stopping"));
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 130);
}

TEST_F(ServeProcessTest, GoesOnServingWhenNobodyReadsItsLog) {
  programs_.Script("isotherm-cpu-worker", "listen flood ready wait");
  Command serve = Serve();
  EXPECT_TRUE(serve.ReadUntil([&] { return serve.out().find("ask it") != std::string::npos; },
                              /*read_err=*/false));
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0);
}

TEST_F(ServeProcessTest, RunStartsAsksAndLeavesNothing) {
  UseEchoGateway();
  Command run = Isotherm({"run", (programs_.dir() / "m.gguf").string(), "good", "morning"});
  EXPECT_EQ(run.Wait(), 0) << run.err();
  EXPECT_EQ(run.out(), "GOOD MORNING\n");
  EXPECT_THAT(run.err(), HasSubstr("2 tokens"));
  EXPECT_EQ(NumRunDirs(), 0u);
  for (const pid_t pid : ServicePids()) EXPECT_TRUE(EndsWithin(pid, std::chrono::seconds(0)));
}

TEST_F(ServeProcessTest, RunUsesTheServerThatIsThere) {
  UseEchoGateway();
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  EXPECT_THAT(serve.out(), HasSubstr("echo (none, Q8_0"));
  Command run = Isotherm({"run", (programs_.dir() / "m.gguf").string(), "hi", "--json"});
  EXPECT_EQ(run.Wait(), 0) << run.err();
  EXPECT_THAT(run.out(), HasSubstr(R"("text":"HI")"));
  EXPECT_EQ(programs_.Starts("isotherm-cpu-worker"), 1) << "a second server was started";
  Command health = Isotherm({"health"});
  EXPECT_EQ(health.Wait(), 0) << health.err();
  EXPECT_EQ(health.out(), "SERVING\n");
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0);
  Command after = Isotherm({"health"});
  EXPECT_EQ(after.Wait(), 69);
}

TEST_F(ServeProcessTest, PlacementVerbsTalkToTheRunningServer) {
  UseEchoGateway();
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  EXPECT_THAT(serve.out(), HasSubstr("epoch 2: 50 % of the neurons hot in 1.00 MB"));
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"show"}, "    0  #######.....................    25 %           50 %"},
      {{"show", "--json"}, R"("hot_share":0.5)"},
      {{"history"}, "    1  retired"},
      {{"history", "--last", "1", "--json"}, R"("state":"live")"},
      {{"rollback", "1"}, "epoch 3 is live with the contents of epoch 1"},
      {{"budget", "2MB"}, "budget 1.00 MB (asked: 2.00 MB)"}};
  for (const auto& [words, expected] : cases) {
    std::vector<std::string> args = {"placement"};
    args.insert(args.end(), words.begin(), words.end());
    Command command = Isotherm(args);
    EXPECT_EQ(command.Wait(), 0) << words[0] << command.err();
    EXPECT_THAT(command.out(), HasSubstr(expected));
  }
  Command refused = Isotherm({"placement", "rollback", "99"});
  EXPECT_EQ(refused.Wait(), 69);
  EXPECT_THAT(refused.err(), HasSubstr("epoch was never live"));
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0);
}

TEST_F(ServeProcessTest, ChatEndsWithItsInput) {
  UseEchoGateway();
  Command serve = Serve();
  ASSERT_TRUE(serve.ReadUntilOut("ask it")) << serve.err();
  // Standard input is /dev/null: the chat starts, finds the end and leaves.
  Command chat = Isotherm({"chat", (programs_.dir() / "m.gguf").string()});
  EXPECT_EQ(chat.Wait(), 0) << chat.err();
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0);
}

TEST_F(ServeProcessTest, AnInterruptedRunEndsWith130AndLeavesNothing) {
  UseEchoGateway();
  Command run = Isotherm({"run", (programs_.dir() / "m.gguf").string(), "on", "forever"});
  ASSERT_TRUE(run.ReadUntilOut("FOREVER")) << run.err();
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130) << run.err();
  EXPECT_EQ(NumRunDirs(), 0u);
  for (const pid_t pid : ServicePids()) EXPECT_TRUE(EndsWithin(pid, std::chrono::seconds(0)));
}

TEST_F(ServeProcessTest, RunSaysWhyTheServicesDoNotStart) {
  programs_.Script("isotherm-cpu-worker", "listen error:arena-needs-9-GB exit:71");
  Command run = Isotherm({"run", (programs_.dir() / "m.gguf").string(), "hi"});
  EXPECT_EQ(run.Wait(), 71);
  EXPECT_THAT(run.err(), HasSubstr("error: cpu-worker: arena-needs-9-GB"));
  EXPECT_THAT(run.err(), HasSubstr("try: free memory"));
}

TEST_F(ServeProcessTest, UsageErrorsNameTheNearestWord) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"srve", "m"}, "try: isotherm serve"},
      {{"run", "m", "--temprature", "1"}, "try: isotherm run --temperature"},
      {{"models", "bild", "x"}, "try: isotherm models build"},
      {{"serve", "m", "--parallel", "many"}, "try: isotherm serve --help"}};
  for (const auto& [args, remedy] : cases) {
    Command command((programs_.dir() / "isotherm").string(), args);
    EXPECT_EQ(command.Wait(), 64) << command.err();
    EXPECT_THAT(command.err(), HasSubstr(remedy));
    EXPECT_EQ(command.out(), "");
  }
}

TEST_F(ServeProcessTest, AMissingModelIsNamed) {
  Command serve = Isotherm({"serve", "nothing.gguf"});
  EXPECT_EQ(serve.Wait(), 65);
  EXPECT_THAT(serve.err(), HasSubstr("no model file at 'nothing.gguf'"));
}

}  // namespace
}  // namespace isotherm::cli
