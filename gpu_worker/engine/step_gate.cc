#include "gpu_worker/engine/step_gate.h"

namespace isotherm::gpu {

StepGate::Step::Step(StepGate& gate) : gate_(gate) {
  std::unique_lock lock(gate_.mu_);
  gate_.changed_.wait(lock, [this] { return gate_.between_ == 0; });
  gate_.running_ = true;
}

StepGate::Step::~Step() {
  {
    std::lock_guard lock(gate_.mu_);
    gate_.running_ = false;
  }
  gate_.changed_.notify_all();
}

void StepGate::Between(const std::function<void()>& work) {
  {
    std::unique_lock lock(mu_);
    ++between_;
    changed_.wait(lock, [this] { return !running_; });
    work();  // under the lock: one at a time
    --between_;
  }
  changed_.notify_all();
}

bool StepGate::Wanted() const {
  std::lock_guard lock(mu_);
  return between_ > 0;
}

}  // namespace isotherm::gpu
