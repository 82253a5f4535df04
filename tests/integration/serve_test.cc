// `isotherm serve` with the real services: one after the other is killed while it answers, and is
// there again within five seconds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The services that run under the process, by program name.
std::map<std::string, pid_t> Services(pid_t parent) {
  std::map<std::string, pid_t> services;
  std::error_code gone;
  for (const auto& task :
       fs::directory_iterator("/proc/" + std::to_string(parent) + "/task", gone)) {
    std::ifstream children(task.path() / "children");
    for (pid_t child; children >> child;) {
      const std::string command = ReadAll("/proc/" + std::to_string(child) + "/cmdline");
      const std::string program = command.substr(0, command.find('\0'));
      services[fs::path(program).filename()] = child;
    }
  }
  return services;
}

class ServeTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "isotherm-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    address_ = "unix:" + directory_ + "/gateway.sock";
    serve_ = std::make_unique<ChildProcess>(
        "serve",
        std::vector<std::string>{std::string(ISOTHERM_BINARY_DIR) + "/bin/isotherm", "serve",
                                 model_.path(), "--state-dir", directory_ + "/state",
                                 "--grpc-listen", address_, "--threads", "1", "--vram-budget",
                                 "128KiB"},
        directory_ + "/log");
    ASSERT_TRUE(serve_->WaitForLine("ready after", seconds(60)).has_value()) << serve_->Log();
  }
  void TearDown() override {
    serve_.reset();
    fs::remove_all(directory_);
  }

  v1::GenerateRequest Request(const GoldenRequest& golden) const {
    return Cluster::Greedy(golden.prompt, static_cast<int>(golden.tokens.size()));
  }
  bool GoldenAgainWithin(const GoldenRequest& golden, milliseconds timeout) const {
    return Eventually(timeout, [&] {
      OpenStream stream(rpc::MakeChannel(address_), Request(golden), {.deadline = timeout});
      const Answer& answer = stream.Finish();
      return answer.status.ok() && answer.token_ids == golden.tokens;
    });
  }

  const IntegerModelFile model_{101};
  std::string directory_, address_;
  std::unique_ptr<ChildProcess> serve_;
};

TEST_F(ServeTest, EachServiceThatIsKilledComesBackAndServiceGoesOn) {
  const std::vector<GoldenRequest> requests = model_.Requests(2, 300);
  ASSERT_TRUE(GoldenAgainWithin(requests[0], seconds(10))) << serve_->Log();
  for (const std::string victim :
       {"isotherm-cpu-worker", "isotherm-gpu-worker", "isotherm-placement", "isotherm-gateway"}) {
    SCOPED_TRACE(victim);
    const std::map<std::string, pid_t> before = Services(serve_->pid());
    ASSERT_EQ(before.size(), 4u);
    OpenStream stream(rpc::MakeChannel(address_), Request(requests[1]), {});
    ASSERT_TRUE(stream.ReadTokens(1));
    ASSERT_EQ(::kill(before.at(victim), SIGKILL), 0);
    const Answer& cut = stream.Finish();
    // What was told is right, however it ended.
    ASSERT_LE(cut.token_ids.size(), requests[1].tokens.size());
    EXPECT_TRUE(std::equal(cut.token_ids.begin(), cut.token_ids.end(), requests[1].tokens.begin()));
    EXPECT_EQ(cut.status.ok(), cut.token_ids.size() == requests[1].tokens.size());
    EXPECT_TRUE(GoldenAgainWithin(requests[0], seconds(5))) << serve_->Log();
    EXPECT_TRUE(Eventually(seconds(10), [&] {
      const std::map<std::string, pid_t> after = Services(serve_->pid());
      return after.size() == 4 && after.at(victim) != before.at(victim);
    })) << serve_->Log();
  }
  const std::map<std::string, pid_t> last = Services(serve_->pid());
  serve_->Signal(SIGTERM);
  EXPECT_EQ(serve_->WaitForExit(seconds(20)), 0) << serve_->Log();
  for (const auto& [name, pid] : last) EXPECT_EQ(NumThreads(pid), -1) << name << " still runs";
}

}  // namespace
}  // namespace isotherm::integration
