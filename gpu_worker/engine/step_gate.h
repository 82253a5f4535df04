#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>

namespace isotherm::gpu {

// Lets work in between two steps. Whoever calls Between() waits for the running step to end, and
// the next step waits for that work: a worker that runs one step after the other cannot starve the
// work. A device that has begun steps early ends them or takes them back before it leaves the gate.
//
// Step: one thread at a time. Between: any thread but one that is inside a step.
class StepGate {
 public:
  class Step {
   public:
    explicit Step(StepGate& gate);
    ~Step();
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    StepGate& gate_;
  };

  // Calls `work` while no step runs.
  void Between(const std::function<void()>& work);
  // Somebody waits to: no further step should be begun before the running one has ended, and one
  // that was should be taken back.
  bool Wanted() const;

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  bool running_ = false;
  int between_ = 0;  // callers of Between() that wait or work
};

}  // namespace isotherm::gpu
