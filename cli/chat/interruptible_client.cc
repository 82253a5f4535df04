#include "cli/chat/interruptible_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "common/base/check.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {
namespace {

class StoppableSink final : public TextSink {
 public:
  StoppableSink(TextSink& next, const std::atomic<int>& signal) : next_(next), signal_(signal) {}
  bool OnText(absl::string_view text) override { return signal_ == 0 && next_.OnText(text); }

 private:
  TextSink& next_;
  const std::atomic<int>& signal_;
};

}  // namespace

absl::StatusOr<GenerateStats> InterruptibleClient::Generate(const GenerateParams& params,
                                                            TextSink& sink) {
  std::atomic<int> signal{0};
  UniqueFd done(::eventfd(0, EFD_CLOEXEC));
  ISOTHERM_CHECK(done.valid());
  std::jthread watcher([&] {
    pollfd fds[2] = {{interrupts_.fd(), POLLIN, 0}, {done.get(), POLLIN, 0}};
    while (::poll(fds, 2, -1) < 0) {
    }
    if (fds[0].revents == 0) return;
    signal = interrupts_.Take();
    if (signal != 0) (void)inner_.Abort(params.request_id);
  });
  StoppableSink stoppable(sink, signal);
  absl::StatusOr<GenerateStats> result = inner_.Generate(params, stoppable);
  const uint64_t one = 1;
  ISOTHERM_CHECK(::write(done.get(), &one, sizeof(one)) == sizeof(one));
  watcher.join();
  last_signal_ = signal;
  if (last_signal_ != 0) return absl::CancelledError("stopped");
  return result;
}

}  // namespace isotherm::cli
