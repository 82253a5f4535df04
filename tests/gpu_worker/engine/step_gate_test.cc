#include "gpu_worker/engine/step_gate.h"

#include <atomic>
#include <future>
#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

TEST(StepGateTest, WorkWaitsForTheRunningStepAndTheNextOneForTheWork) {
  StepGate gate;
  std::optional<StepGate::Step> step;
  step.emplace(gate);
  EXPECT_FALSE(gate.Wanted());
  std::atomic<bool> asked = false, step_over = false, work_over = false;
  std::promise<void> working, go_on;
  std::future<void> may_go_on = go_on.get_future();
  std::thread work([&] {
    asked = true;
    gate.Between([&] {
      EXPECT_TRUE(step_over);
      working.set_value();
      may_go_on.wait();
      work_over = true;
    });
  });
  while (!asked || !gate.Wanted()) std::this_thread::yield();
  step_over = true;
  step.reset();
  working.get_future().wait();
  asked = false;
  std::thread next([&] {
    asked = true;
    const StepGate::Step inside(gate);
    EXPECT_TRUE(work_over);
  });
  while (!asked) std::this_thread::yield();
  for (int i = 0; i < 1'000; ++i) std::this_thread::yield();
  go_on.set_value();
  next.join();
  work.join();
  EXPECT_FALSE(gate.Wanted());
}

// A thread that does nothing but steps, and others that want in between: no two ever overlap, and
// between the asking and the work at most the step under way ends.
TEST(StepGateTest, EndlessStepsDoNotStarveTheWork) {
  StepGate gate;
  std::atomic<bool> stop = false, in_step = false, in_work = false;
  std::atomic<int64_t> steps = 0;
  std::thread stepper([&] {
    while (!stop) {
      const StepGate::Step step(gate);
      EXPECT_FALSE(in_work);
      in_step = true;
      ++steps;
      in_step = false;
    }
  });
  std::vector<std::thread> others;
  for (int t = 0; t < 3; ++t) {
    others.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        gate.Between([&] {
          EXPECT_FALSE(in_step);
          EXPECT_FALSE(in_work.exchange(true));
          in_work = false;
        });
      }
    });
  }
  for (std::thread& thread : others) thread.join();
  const int64_t before = steps;
  while (steps == before) std::this_thread::yield();  // steps go on
  stop = true;
  stepper.join();
}

}  // namespace
}  // namespace isotherm::gpu
