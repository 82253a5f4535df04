// What a service says, and how it ends, when it cannot start: an exit code that tells a supervisor
// whether to try again, and one text with what it got, what it wanted and what to do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class StartupErrorsTest : public testing::TestWithParam<const char*> {
 protected:
  StartupErrorsTest() {
    std::string pattern = (fs::temp_directory_path() / "isotherm-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  ~StartupErrorsTest() override { fs::remove_all(directory_); }

  static std::string Program(const std::string& name) {
    return std::string(ISOTHERM_BINARY_DIR) + "/bin/isotherm-" + name;
  }
  std::string InDirectory(const std::string& name) const { return directory_ + "/" + name; }
  std::string Socket(const std::string& name) const { return "unix:" + InDirectory(name); }

  // A right command line of the service; its peers are away.
  std::vector<std::string> Command(const std::string& name, const std::string& model) const {
    std::vector<std::string> command = {Program(name), "--model", model, "--listen",
                                        Socket(name + ".sock")};
    const auto add = [&command](std::initializer_list<std::string> flags) {
      command.insert(command.end(), flags);
    };
    if (name == "cpu-worker") add({"--socket-dir", directory_});
    if (name == "gpu-worker") add({"--cpu-worker", Socket("away"), "--device", "cpu"});
    if (name == "gateway") add({"--gpu-worker", Socket("away")});
    if (name == "placement") {
      add({"--gpu-worker", Socket("away"), "--cpu-worker", Socket("gone"), "--state-dir",
           InDirectory("state")});
    }
    return command;
  }
  // Runs to the end; the exit status, and the log in log_.
  std::optional<int> Run(std::vector<std::string> command) {
    ChildProcess child("service", std::move(command),
                       InDirectory("log" + std::to_string(num_runs_++)));
    const std::optional<int> status = child.WaitForExit(seconds(20));
    log_ = child.Log();
    return status;
  }

  const IntegerModelFile model_{61};
  std::string directory_;
  std::string log_;
  int num_runs_ = 0;
};

class ModelErrorsTest : public StartupErrorsTest {};
INSTANTIATE_TEST_SUITE_P(Services, ModelErrorsTest,
                         testing::Values("cpu-worker", "gpu-worker", "gateway"));

class FlagErrorsTest : public StartupErrorsTest {};
INSTANTIATE_TEST_SUITE_P(Services, FlagErrorsTest,
                         testing::Values("cpu-worker", "gpu-worker", "placement", "gateway"));

TEST_P(ModelErrorsTest, MissingModelIsNamed) {
  EXPECT_EQ(Run(Command(GetParam(), InDirectory("none.gguf"))), 65);
  EXPECT_THAT(log_, AllOf(HasSubstr("none.gguf"), HasSubstr("No such file"), HasSubstr("check")));
}

TEST_P(ModelErrorsTest, ModelCutShortIsRefused) {
  const std::string bytes = ReadAll(model_.path());
  for (const size_t left :
       {size_t{0}, size_t{3}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    WriteAll(InDirectory("cut.gguf"), bytes.substr(0, left));
    EXPECT_EQ(Run(Command(GetParam(), InDirectory("cut.gguf"))), 65) << left << " bytes\n" << log_;
    EXPECT_THAT(log_, HasSubstr("cut.gguf"));
  }
}

TEST_P(ModelErrorsTest, UnknownArchitectureIsNamedWithTheKnown) {
  std::string bytes = ReadAll(model_.path());
  const std::string key = "general.architecture";
  const size_t at = bytes.find(key);
  ASSERT_NE(at, std::string::npos);
  // Key, value type (4 bytes), length (8 bytes), text.
  const size_t text = at + key.size() + 12;
  ASSERT_EQ(bytes.substr(text, 5), "llama");
  WriteAll(InDirectory("other.gguf"), bytes.replace(text, 5, "mamba"));
  EXPECT_EQ(Run(Command(GetParam(), InDirectory("other.gguf"))), 65);
  EXPECT_THAT(log_, AllOf(HasSubstr("mamba"), HasSubstr("supported: llama")));
}

TEST_P(FlagErrorsTest, BadFlagsAreUsageErrors) {
  std::vector<std::string> unknown = Command(GetParam(), model_.path());
  unknown.push_back("--no-such-flag");
  EXPECT_EQ(Run(unknown), 64);
  EXPECT_THAT(log_, AllOf(HasSubstr("--no-such-flag"),
                          HasSubstr("try: isotherm-" + std::string(GetParam()) + " --help")));
  std::vector<std::string> level = Command(GetParam(), model_.path());
  level.insert(level.end(), {"--log-level", "loud"});
  EXPECT_EQ(Run(level), 64);
  EXPECT_THAT(log_, AllOf(HasSubstr("loud"), HasSubstr("debug")));
  EXPECT_EQ(Run({Program(GetParam())}), 64);
  EXPECT_THAT(log_, HasSubstr("required"));
}

TEST_P(FlagErrorsTest, AddressInUseIsAShortageThatEnds) {
  std::vector<std::string> first = Command(GetParam(), model_.path());
  const auto listen = std::find(first.begin(), first.end(), "--listen") + 1;
  *listen = "127.0.0.1:0";
  ChildProcess holder("holder", first, InDirectory("holder.log"));
  const auto address = holder.WaitForLine("listening ", seconds(20));
  ASSERT_TRUE(address.has_value()) << holder.Log();
  std::vector<std::string> second = first;
  second[static_cast<size_t>(listen - first.begin())] = *address;
  for (std::string& argument : second) {
    if (argument == InDirectory("state")) argument = InDirectory("state2");
  }
  EXPECT_EQ(Run(second), 71);
  EXPECT_THAT(log_, AllOf(HasSubstr(*address), HasSubstr("in use"), HasSubstr("port 0")));
}

TEST_P(FlagErrorsTest, SocketInUseStaysWithItsOwner) {
  const std::vector<std::string> command = Command(GetParam(), model_.path());
  ChildProcess holder("holder", command, InDirectory("holder.log"));
  ASSERT_TRUE(holder.WaitForLine("listening ", seconds(20)).has_value()) << holder.Log();
  std::vector<std::string> second = command;
  for (std::string& argument : second) {
    if (argument == InDirectory("state")) argument = InDirectory("state2");
  }
  EXPECT_EQ(Run(second), 71);
  EXPECT_THAT(log_, AllOf(HasSubstr("is in use"), HasSubstr("--listen")));
  EXPECT_THAT(Names(directory_, true), testing::Contains(std::string(GetParam()) + ".sock"));
  // And when the owner is killed, its socket is no hindrance.
  holder.Signal(SIGKILL);
  ASSERT_TRUE(holder.WaitForExit(seconds(10)).has_value());
  ChildProcess next("next", command, InDirectory("next.log"));
  EXPECT_TRUE(next.WaitForLine("listening ", seconds(20)).has_value()) << next.Log();
}

TEST_P(FlagErrorsTest, SignalWhilePeersAreAwayEndsCleanly) {
  ChildProcess child("service", Command(GetParam(), model_.path()), InDirectory("log"));
  ASSERT_TRUE(child.WaitForLine("listening ", seconds(20)).has_value());
  child.Signal(SIGTERM);
  EXPECT_EQ(child.WaitForExit(seconds(10)), 0) << child.Log();
  EXPECT_THAT(Names(directory_, true), testing::IsEmpty());
}

TEST_F(StartupErrorsTest, ArenaLargerThanTheLimitSaysNeededAndFree) {
  // dash counts in blocks of 512 bytes: 64 KiB, a quarter of the arena.
  std::string line = "ulimit -f 128; exec \"$0\" \"$@\"";
  std::vector<std::string> command = {"/bin/sh", "-c", line};
  for (const std::string& argument : Command("cpu-worker", model_.path()))
    command.push_back(argument);
  EXPECT_EQ(Run(command), 71);
  EXPECT_THAT(
      log_, AllOf(HasSubstr("the arena needs"), HasSubstr("leaves 65536"), HasSubstr("ulimit -f")));
}

// Memory that runs out anywhere in a start: the process ends, and never says that it is ready.
TEST_P(FlagErrorsTest, AddressSpaceThatRunsOutIsAnEndAndNoService) {
  bool ended = false, served = false;
  for (int mib = 16; mib <= 1024 && !served; mib *= 2) {
    std::vector<std::string> command = {
        "/bin/sh", "-c",
        "ulimit -c 0; ulimit -v " + std::to_string(mib * 1024) + "; exec \"$0\" \"$@\""};
    for (const std::string& argument : Command(GetParam(), model_.path()))
      command.push_back(argument);
    ChildProcess child("service", command, InDirectory("log" + std::to_string(mib)));
    // Peers are away, so that only the cpu_worker and the placement_service may become ready;
    // listening is what all of them reach.
    if (child.WaitForLine("listening ", seconds(20)).has_value()) {
      child.Signal(SIGTERM);
      const std::optional<int> status = child.WaitForExit(seconds(20));
      ASSERT_TRUE(status.has_value()) << mib << " MiB\n" << child.Log();
      served = status == 0;
      ended = ended || !served;
      continue;
    }
    const std::optional<int> status = child.WaitForExit(seconds(20));
    ASSERT_TRUE(status.has_value()) << mib << " MiB\n" << child.Log();
    EXPECT_NE(status, 0) << mib << " MiB\n" << child.Log();
    ended = true;
  }
  EXPECT_TRUE(ended);
}

TEST_F(StartupErrorsTest, KvCacheThatCannotFitIsFinal) {
  std::vector<std::string> command = Command("gpu-worker", model_.path());
  command.insert(command.end(), {"--context", "512", "--kv-bytes", "4096"});
  EXPECT_EQ(Run(command), 78);
  EXPECT_THAT(log_, AllOf(HasSubstr("--kv-bytes"), HasSubstr("try --context")));
}

TEST_F(StartupErrorsTest, PlanStoreThatIsNoneIsKept) {
  fs::create_directories(InDirectory("state"));
  WriteAll(InDirectory("state/placement.sqlite"), "this is no database, keep it");
  EXPECT_EQ(Run(Command("placement", model_.path())), 65) << log_;
  EXPECT_THAT(log_, HasSubstr("placement.sqlite"));
  EXPECT_EQ(ReadAll(InDirectory("state/placement.sqlite")), "this is no database, keep it");
}

TEST_F(StartupErrorsTest, SecondPlacementServiceOnOneStoreIsRefused) {
  const std::vector<std::string> command = Command("placement", model_.path());
  ChildProcess holder("holder", command, InDirectory("holder.log"));
  ASSERT_TRUE(holder.WaitForLine("listening", seconds(20)).has_value()) << holder.Log();
  std::vector<std::string> second = command;
  *(std::find(second.begin(), second.end(), "--listen") + 1) = Socket("second.sock");
  EXPECT_EQ(Run(second), 71) << log_;
  EXPECT_THAT(log_,
              AllOf(HasSubstr("another placement_service uses it"), HasSubstr("--state-dir")));
}

}  // namespace
}  // namespace isotherm::integration
