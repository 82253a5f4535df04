// The real binary: what it says and how it ends when it cannot serve.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/unique_fd.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"
#include "tests/cpu_worker/toy_model.h"
#include "tests/reference/integer_model.h"

namespace isotherm::cpu {
namespace {

class ProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    model_ = directory_.path() + "/model.gguf";
    ASSERT_TRUE(
        reference::IntegerModel(reference::IntegerModelOptions{}).Write(model_, DType::kQ8_0).ok());
  }
  ~ProcessTest() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  void Start(
      const std::string& model, const std::string& listen,
      const std::function<void()>& before = [] {}, const std::vector<std::string>& more = {}) {
    int out[2];
    ASSERT_EQ(::pipe(out), 0);
    errors_ = directory_.path() + "/errors";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], 1);
      ::close(out[0]);
      if (::freopen(errors_.c_str(), "w", stderr) == nullptr) ::_exit(127);
      before();
      std::vector<std::string> args = {
          "isotherm-cpu-worker", "--model",         model,       "--listen", listen,
          "--socket-dir",        directory_.path(), "--threads", "1"};
      args.insert(args.end(), more.begin(), more.end());
      std::vector<char*> argv;
      for (std::string& arg : args) argv.push_back(arg.data());
      argv.push_back(nullptr);
      ::execv(ISOTHERM_BINARY_DIR "/bin/isotherm-cpu-worker", argv.data());
      ::_exit(127);
    }
    ::close(out[1]);
    output_.Reset(out[0]);
  }
  // Its next line on stdout; empty at the end.
  std::string Line() {
    std::string line;
    char byte;
    while (::read(output_.get(), &byte, 1) == 1 && byte != '\n') line.push_back(byte);
    return line;
  }
  int ExitCode() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string Errors() const {
    std::ifstream file(errors_);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  const TemporaryDirectory directory_;
  std::string model_;
  std::string errors_;
  pid_t pid_ = 0;
  UniqueFd output_;
};

TEST_F(ProcessTest, ListensLoadsServesAndEndsOnSigterm) {
  Start(model_, "127.0.0.1:0");
  EXPECT_EQ(Line().rfind("listening 127.0.0.1:", 0), 0u);
  std::string line = Line();
  while (line.rfind("progress ", 0) == 0) line = Line();
  EXPECT_EQ(line, "ready");
  ::kill(pid_, SIGTERM);
  EXPECT_EQ(ExitCode(), 0);
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
    EXPECT_NE(entry.path().extension(), ".sock") << entry.path();
  }
}

TEST_F(ProcessTest, KeepsComputeThreadsAndTheOthersToTheirCpus) {
  const std::vector<int> allowed = AllowedCpus();
  Start(model_, "127.0.0.1:0", [] {},
        {"--compute-cpus", FormatCpuList({allowed.back()}), "--cpus",
         FormatCpuList({allowed.front()})});
  while (Line() != "ready") ASSERT_FALSE(::testing::Test::HasFailure());
  const std::string compute_cpu = std::to_string(allowed.back());
  // Names and the CPUs that each thread may use.
  const auto threads = [&] {
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/task")) {
      std::string name, cpus;
      std::getline(std::ifstream(task.path() / "comm"), name);
      std::ifstream status(task.path() / "status");
      for (std::string line; std::getline(status, line);) {
        if (line.rfind("Cpus_allowed_list:", 0) == 0)
          cpus = line.substr(line.find_last_of('\t') + 1);
      }
      if (!cpus.empty()) out.emplace_back(name, cpus);  // else it has ended meanwhile
    }
    return out;
  };
  // A thread names and binds itself, some time after it was made.
  const std::pair<std::string, std::string> computes("cold-compute", compute_cpu);
  auto seen = threads();
  while (std::find(seen.begin(), seen.end(), computes) == seen.end()) {
    ASSERT_EQ(::kill(pid_, 0), 0);
    std::this_thread::yield();
    seen = threads();
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), computes), 1);
  EXPECT_GT(seen.size(), 1u);
  for (const auto& [name, cpus] : seen) {
    if (name == computes.first) continue;
    EXPECT_EQ(cpus, std::to_string(allowed.front())) << name;
  }
}

TEST_F(ProcessTest, ListsThatAreNoCpusAre64) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"--cpus", "x"}, {"--cpus", "8000"}, {"--compute-cpus", "3-1"}}) {
    Start(
        model_, "127.0.0.1:0", [] {}, args);
    EXPECT_EQ(ExitCode(), 64);
    EXPECT_NE(Errors().find(args[1]), std::string::npos) << Errors();
  }
}

TEST_F(ProcessTest, AMissingModelIs65) {
  Start(directory_.path() + "/none.gguf", "127.0.0.1:0");
  EXPECT_EQ(ExitCode(), 65);
  EXPECT_NE(Errors().find("none.gguf"), std::string::npos) << Errors();
}

TEST_F(ProcessTest, ATruncatedModelIs65) {
  std::filesystem::resize_file(model_, std::filesystem::file_size(model_) / 2);
  Start(model_, "127.0.0.1:0");
  EXPECT_EQ(ExitCode(), 65);
}

TEST_F(ProcessTest, APortInUseIs71) {
  Start(model_, "127.0.0.1:0");
  const std::string address = Line().substr(std::string("listening ").size());
  const pid_t first = std::exchange(pid_, 0);
  Start(model_, address);
  EXPECT_EQ(ExitCode(), 71);
  EXPECT_NE(Errors().find(address), std::string::npos) << Errors();
  pid_ = first;
}

TEST_F(ProcessTest, TooLittleRoomForTheArenaIs71WithBothNumbers) {
  Start(model_, "127.0.0.1:0", [] {
    const rlimit limit{20'000, 20'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  });
  EXPECT_EQ(ExitCode(), 71);
  EXPECT_NE(Errors().find("the arena needs"), std::string::npos) << Errors();
  EXPECT_NE(Errors().find("20000"), std::string::npos) << Errors();
}

TEST_F(ProcessTest, ASocketPathThatIsTooLongIs64) {
  Start(model_, "unix:" + directory_.path() + "/" + std::string(120, 'x'));
  EXPECT_EQ(ExitCode(), 64);
}

}  // namespace
}  // namespace isotherm::cpu
