#include "cli/supervise/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/base/exit_code.h"
#include "tests/cli/fakes/fake_programs.h"

namespace isotherm::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Records events and acts on them; all on the supervisor's thread.
class Recorder : public SupervisorObserver {
 public:
  void OnStarted(absl::string_view service, int64_t pid) override {
    pids[std::string(service)] = pid;
  }
  void OnListening(absl::string_view service, absl::string_view address) override {
    addresses[std::string(service)] = std::string(address);
  }
  void OnProgress(double share) override { last_progress = share; }
  void OnAllReady() override {
    ++times_ready;
    if (on_ready) on_ready();
  }
  void OnExit(absl::string_view service, absl::string_view how,
              std::optional<std::chrono::milliseconds> restart_in) override {
    exits.push_back(std::string(service) + ": " + std::string(how));
    if (restart_in.has_value()) delays.push_back(restart_in->count());
  }
  void OnLog(const LogLine& line) override {
    log.push_back(line.message);
    if (on_log) on_log();
  }
  void OnStopping() override {
    if (on_stopping) on_stopping();
  }

  std::map<std::string, int64_t> pids;
  std::map<std::string, std::string> addresses;
  std::vector<std::string> exits;
  std::vector<int64_t> delays;
  std::vector<std::string> log;
  double last_progress = 0;
  int times_ready = 0;
  std::function<void()> on_ready;
  std::function<void()> on_log;
  std::function<void()> on_stopping;
};

class SupervisorTest : public ::testing::Test {
 protected:
  absl::Status Run(std::vector<ServiceSpec> services) {
    options_.services = std::move(services);
    options_.restart.first_delay = std::chrono::milliseconds(4);
    Supervisor supervisor(options_, recorder_);
    supervisor_ = &supervisor;
    return supervisor.Run();
  }
  void StopWhenReady(int times = 1) {
    recorder_.on_ready = [this, times] {
      if (recorder_.times_ready == times) supervisor_->RequestStop();
    };
  }

  FakePrograms programs_;
  Recorder recorder_;
  SupervisorOptions options_;
  Supervisor* supervisor_ = nullptr;
};

TEST_F(SupervisorTest, ReportsAddressProgressAndReady) {
  StopWhenReady();
  EXPECT_TRUE(Run({programs_.Add("a", "listen progress:0.5 ready wait"),
                   programs_.Add("b", "listen ready wait")})
                  .ok());
  EXPECT_EQ(recorder_.addresses["a"], "unix:/a");
  EXPECT_EQ(recorder_.times_ready, 1);
  EXPECT_EQ(recorder_.last_progress, 1.0);
  for (const auto& [name, pid] : recorder_.pids) {
    EXPECT_NE(::kill(static_cast<pid_t>(pid), 0), 0) << name << " still runs";
  }
}

TEST_F(SupervisorTest, StopsTheDrainingServiceBeforeTheOthers) {
  StopWhenReady();
  EXPECT_TRUE(Run({programs_.Add("worker", "ready wait"),
                   programs_.Add("gateway", "ready wait", /*drains_first=*/true)})
                  .ok());
  EXPECT_EQ(programs_.Read("stopped"), "gateway\nworker\n");
}

TEST_F(SupervisorTest, RestartsAKilledServiceAtOnce) {
  StopWhenReady(2);
  EXPECT_TRUE(Run({programs_.Add("a", "ready first:kill:9 wait")}).ok());
  EXPECT_EQ(programs_.Starts("a"), 2);
  EXPECT_THAT(recorder_.delays, ElementsAre(0));
  EXPECT_THAT(recorder_.exits[0], HasSubstr("signal 9"));
}

TEST_F(SupervisorTest, RestartsAServiceThatEndsWithoutBeingAsked) {
  StopWhenReady(2);
  EXPECT_TRUE(Run({programs_.Add("a", "ready first:exit:0 wait")}).ok());
  EXPECT_EQ(programs_.Starts("a"), 2);
}

TEST_F(SupervisorTest, PassesOnTheFinalExitCodeWithItsReason) {
  for (const int code : {64, 65, 78}) {
    SCOPED_TRACE(code);
    const std::string name = "a" + std::to_string(code);
    const absl::Status status =
        Run({programs_.Add(name, "error:no-such-model exit:" + std::to_string(code)),
             programs_.Add("b" + std::to_string(code), "ready wait")});
    EXPECT_EQ(static_cast<int>(ExitCodeOf(status)), code);
    EXPECT_THAT(std::string(status.message()), HasSubstr(name + ": no-such-model"));
    EXPECT_EQ(programs_.Starts(name), 1);
  }
}

TEST_F(SupervisorTest, PassesOnAShortageOnlyBeforeItWasEverReady) {
  EXPECT_EQ(ExitCodeOf(Run({programs_.Add("a", "error:port exit:71")})), ExitCode::kShortage);
  EXPECT_EQ(programs_.Starts("a"), 1);
  StopWhenReady(2);
  EXPECT_TRUE(Run({programs_.Add("b", "ready first:line:x first:exit:71 wait")}).ok());
  EXPECT_EQ(programs_.Starts("b"), 2);
}

TEST_F(SupervisorTest, GivesUpOnAServiceThatNeverBecomesReady) {
  options_.restart.max_failures_before_first_ready = 3;
  const absl::Status status = Run({programs_.Add("a", "error:broken exit:70")});
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a: broken"));
  EXPECT_EQ(programs_.Starts("a"), 3);
}

TEST_F(SupervisorTest, SaysSoWhenAProgramIsMissing) {
  const absl::Status status =
      Run({{.name = "gone", .program = (programs_.dir() / "gone").string()}});
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot run"));
}

TEST_F(SupervisorTest, ReportsADrainThatWasCut) {
  StopWhenReady();
  EXPECT_EQ(ExitCodeOf(Run({programs_.Add("gateway", "ready wait:75", true)})),
            ExitCode::kDrainCut);
}

TEST_F(SupervisorTest, KillsADrainThatOutlastsItsDeadline) {
  StopWhenReady();
  options_.drain_timeout = std::chrono::milliseconds(20);
  EXPECT_EQ(ExitCodeOf(Run({programs_.Add("gateway", "ready stuck", true),
                            programs_.Add("worker", "ready wait")})),
            ExitCode::kDrainCut);
  EXPECT_EQ(programs_.Read("stopped"), "worker\n");
}

TEST_F(SupervisorTest, KillsAServiceThatIgnoresSigterm) {
  StopWhenReady();
  options_.stop_timeout = std::chrono::milliseconds(20);
  EXPECT_TRUE(Run({programs_.Add("a", "ready stuck")}).ok());
  EXPECT_THAT(recorder_.exits, ElementsAre(HasSubstr("signal 9")));
}

TEST_F(SupervisorTest, ASecondStopKillsAtOnce) {
  recorder_.on_ready = [this] { supervisor_->RequestStop(); };
  recorder_.on_stopping = [this] { supervisor_->RequestStop(); };
  const absl::Status status = Run({programs_.Add("gateway", "ready stuck", true)});
  EXPECT_EQ(static_cast<int>(ExitCodeOf(status)), 130);
}

TEST_F(SupervisorTest, StopsWhileLoading) {
  recorder_.on_log = [this] { supervisor_->RequestStop(); };
  EXPECT_TRUE(Run({programs_.Add("a", "line:loading wait")}).ok());
  EXPECT_EQ(recorder_.times_ready, 0);
}

TEST_F(SupervisorTest, EscapesControlBytesOfAServicesOutput) {
  recorder_.on_log = [this] { supervisor_->RequestStop(); };
  EXPECT_TRUE(Run({programs_.Add("a", "line:\033[31mred wait")}).ok());
  EXPECT_THAT(recorder_.log, ElementsAre("\\x1b[31mred"));
}

}  // namespace
}  // namespace isotherm::cli
