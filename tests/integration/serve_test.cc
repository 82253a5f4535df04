// `isotherm serve` with the real services: one after the other is killed while it answers, and is
// there again within five seconds. So is a gpu_worker whose device is lost.
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
        std::vector<std::string>{ProgramDir() + "/isotherm", "serve", model_.path(), "--state-dir",
                                 directory_ + "/state", "--grpc-listen", address_, "--threads", "1",
                                 "--vram-budget", "128KiB"},
        directory_ + "/log");
    ASSERT_TRUE(serve_->WaitForLine("ready after", seconds(60)).has_value()) << serve_->Log();
  }
  void TearDown() override {
    serve_.reset();
    fs::remove_all(directory_);
  }

  // Where `serve` finds the services.
  virtual std::string ProgramDir() { return std::string(ISOTHERM_BINARY_DIR) + "/bin"; }

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

// A gpu_worker around a device that fails when the test says so; everything else is real.
class LostDeviceTest : public ServeTest {
 protected:
  void TearDown() override {
    ServeTest::TearDown();
    ::unsetenv("ISOTHERM_TEST_DEVICE_ORDER");
  }
  std::string ProgramDir() override {
    const std::string real = ServeTest::ProgramDir(), mine = directory_ + "/bin";
    fs::create_directory(mine);
    fs::copy_file(real + "/isotherm", mine + "/isotherm");  // finds the others beside itself
    for (const char* name : {"isotherm-cpu-worker", "isotherm-placement", "isotherm-gateway"})
      fs::create_symlink(real + "/" + name, mine + "/" + name);
    fs::create_symlink(std::string(ISOTHERM_BINARY_DIR) + "/tests/faulty/isotherm-gpu-worker",
                       mine + "/isotherm-gpu-worker");
    ::setenv("ISOTHERM_TEST_DEVICE_ORDER", Order().c_str(), 1);
    return mine;
  }
  std::string Order() const { return directory_ + "/order"; }
  // What the device does at its next step.
  void Tell(const std::string& order) const {
    std::ofstream(Order() + ".new") << order;
    fs::rename(Order() + ".new", Order());
  }
  size_t Ends() const {
    const std::string log = serve_->Log(), line = "gpu-worker ended with exit code 70; starting";
    size_t count = 0;
    for (size_t at = log.find(line); at != std::string::npos; at = log.find(line, at + 1)) ++count;
    return count;
  }
  // Once the order is carried out: the worker ends with 70 and another one serves in its place; the
  // other services are the same ones.
  void ExpectReplaced(const std::map<std::string, pid_t>& before, const GoldenRequest& golden,
                      size_t ends) const {
    EXPECT_TRUE(GoldenAgainWithin(golden, seconds(10))) << serve_->Log();
    EXPECT_TRUE(Eventually(seconds(10), [&] { return Ends() == ends; })) << serve_->Log();
    EXPECT_FALSE(fs::exists(Order()));
    std::map<std::string, pid_t> after = Services(serve_->pid());
    EXPECT_EQ(after.size(), 4u);
    EXPECT_NE(after["isotherm-gpu-worker"], before.at("isotherm-gpu-worker"));
    after["isotherm-gpu-worker"] = before.at("isotherm-gpu-worker");
    EXPECT_EQ(after, before);
  }
  // A request that meets the order with its first step is answered as if nothing had been.
  void ExpectRunAgainAfter(const std::string& order) {
    const GoldenRequest golden = model_.Requests(1, 40)[0];
    ASSERT_TRUE(GoldenAgainWithin(golden, seconds(10))) << serve_->Log();
    const std::map<std::string, pid_t> before = Services(serve_->pid());
    ASSERT_EQ(before.size(), 4u);
    Tell(order);
    OpenStream stream(rpc::MakeChannel(address_), Request(golden), {});
    const Answer& answer = stream.Finish();
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message() << serve_->Log();
    EXPECT_EQ(answer.token_ids, golden.tokens);
    ExpectReplaced(before, golden, 1);
  }
};

TEST_F(LostDeviceTest, AStickyErrorEndsTheWorkerAndServiceGoesOn) {
  const std::vector<GoldenRequest> requests = model_.Requests(2, 300);
  ASSERT_TRUE(GoldenAgainWithin(requests[0], seconds(10))) << serve_->Log();
  // Under a request: what was told is right, the rest is an error.
  std::map<std::string, pid_t> before = Services(serve_->pid());
  ASSERT_EQ(before.size(), 4u);
  {
    OpenStream stream(rpc::MakeChannel(address_), Request(requests[1]), {});
    ASSERT_TRUE(stream.ReadTokens(1));
    Tell("lost");
    const Answer& cut = stream.Finish();
    ASSERT_LE(cut.token_ids.size(), requests[1].tokens.size());
    EXPECT_TRUE(std::equal(cut.token_ids.begin(), cut.token_ids.end(), requests[1].tokens.begin()));
    EXPECT_EQ(cut.status.ok(), cut.token_ids.size() == requests[1].tokens.size());
    // No address, no path and no driver's text for clients.
    EXPECT_EQ(cut.status.error_message().find("cudaError"), std::string::npos);
  }
  ExpectReplaced(before, requests[0], 1);
  EXPECT_NE(serve_->Log().find("the GPU reported an error that ends this process"),
            std::string::npos);
}

TEST_F(LostDeviceTest, ARequestWithoutATokenIsRunAgainUnseen) { ExpectRunAgainAfter("lost"); }

TEST_F(LostDeviceTest, ADeviceThatHangsEndsTheWorkerAndServiceGoesOn) {
  ExpectRunAgainAfter("hang");
  EXPECT_NE(serve_->Log().find("the GPU did not finish a step by its deadline"), std::string::npos);
}

}  // namespace
}  // namespace isotherm::integration
