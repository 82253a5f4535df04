#include "cpu_worker/engine/scrubber.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// 8,064 bytes a bundle, so that a layer has four groups, the last one smaller.
BundleSource LargeSource() {
  BundleSource source;
  source.shape = {
      .dtype = DType::kF16, .rows = 3, .model_dim = 1344, .num_neurons = 100, .num_layers = 3};
  source.pack = [](int64_t layer, int64_t first, int64_t count, std::byte* out) {
    for (int64_t n = 0; n < count; ++n) {
      std::mt19937_64 neuron(static_cast<uint64_t>(layer * 1000 + first + n));
      for (int64_t at = 0; at < 8064; at += 8) {
        const uint64_t word = neuron();
        std::memcpy(out + n * 8064 + at, &word, sizeof(word));
      }
    }
    return absl::OkStatus();
  };
  return source;
}

class Listener final : public WorkerListener {
 public:
  void OnStepFinished(const StepResult& result) override {
    std::lock_guard lock(mu_);
    messages_.push_back(result.error_message);
    code_ = result.error_code;
  }
  void OnStateChanged() override {}
  std::vector<std::string> messages() {
    std::lock_guard lock(mu_);
    return messages_;
  }
  int32_t code() {
    std::lock_guard lock(mu_);
    return code_;
  }

 private:
  std::mutex mu_;
  std::vector<std::string> messages_;
  int32_t code_ = 0;
};

class ScrubberTest : public testing::Test {
 protected:
  void SetUp() override {
    arena_ = *Arena::Load(source_, {.num_threads = 2});
    // Another holder of the memory, like a gpu_worker.
    auto fd = arena_->DuplicateFd();
    mapping_ = *shm::MapShared(fd->get(), arena_->geometry().arena_bytes, shm::Access::kReadWrite);
    events_.Add(&listener_);
    scrubber_ = std::make_unique<Scrubber>(*arena_, source_, events_, [this](absl::Status why) {
      beyond_repair_ = std::string(why.message());
      given_up_ = true;
    });
  }
  void TearDown() override { events_.Remove(&listener_); }

  std::byte& At(int64_t layer, int64_t offset) {
    return mapping_.data()[arena_->geometry().LayerOffset(layer) + offset];
  }
  // A whole round: the groups at which something was found.
  std::vector<int64_t> Round() {
    std::vector<int64_t> found;
    for (int64_t group = 0; group < arena_->num_groups(); ++group) {
      if (!scrubber_->CheckNext().ok()) found.push_back(group);
    }
    return found;
  }
  bool IsWhole() {
    std::vector<std::byte> want(static_cast<size_t>(arena_->geometry().layer_bytes()));
    for (int64_t layer = 0; layer < 3; ++layer) {
      if (!LargeSource().pack(layer, 0, 100, want.data()).ok()) return false;
      if (std::memcmp(want.data(), &At(layer, 0), want.size()) != 0) return false;
    }
    return true;
  }

  BundleSource source_ = LargeSource();
  std::unique_ptr<Arena> arena_;
  shm::Mapping mapping_;
  WorkerEvents events_;
  Listener listener_;
  std::string beyond_repair_;
  std::atomic<bool> given_up_{false};
  std::unique_ptr<Scrubber> scrubber_;
};

TEST_F(ScrubberTest, FindsAFlippedBitWhereverItIsAndMendsItForAllWhoMapIt) {
  ASSERT_EQ(arena_->num_groups(), 12);
  EXPECT_THAT(Round(), ElementsAre());
  const int64_t end = arena_->geometry().layer_bytes();
  At(0, 0) ^= std::byte{1};
  At(1, 40 * 8064) ^= std::byte{128};
  At(1, 40 * 8064 + 9) ^= std::byte{2};
  At(2, end - 1) ^= std::byte{16};
  EXPECT_THAT(Round(), ElementsAre(0, 5, 11));
  EXPECT_TRUE(IsWhole());
  EXPECT_THAT(Round(), ElementsAre());
  EXPECT_THAT(listener_.messages(), ElementsAre(HasSubstr("neurons 0 to 31 of layer 0"),
                                                HasSubstr("neurons 32 to 63 of layer 1"),
                                                HasSubstr("neurons 96 to 99 of layer 2")));
  EXPECT_EQ(listener_.code(), static_cast<int32_t>(absl::StatusCode::kDataLoss));
}

TEST_F(ScrubberTest, ItsThreadGoesThroughTheArena) {
  At(2, 77) ^= std::byte{1};
  scrubber_->Start(int64_t{1} << 40);
  while (listener_.messages().empty()) std::this_thread::yield();
  scrubber_.reset();
  EXPECT_TRUE(IsWhole());
  EXPECT_FALSE(given_up_);
}

TEST_F(ScrubberTest, GivesUpWhenTheSourceIsNoLongerWhatWasLoaded) {
  source_.pack = [](int64_t layer, int64_t first, int64_t count, std::byte* out) {
    const absl::Status status = LargeSource().pack(layer, first, count, out);
    out[5] ^= std::byte{1};
    return status;
  };
  At(0, 3) ^= std::byte{1};
  scrubber_->Start(int64_t{1} << 40);
  while (!given_up_) std::this_thread::yield();
  scrubber_.reset();
  EXPECT_THAT(beyond_repair_, HasSubstr("not what was loaded"));
  EXPECT_THAT(listener_.messages(), ElementsAre(HasSubstr("layer 0")));
}

TEST_F(ScrubberTest, PassesOnWhatTheSourceSays) {
  source_.pack = [](int64_t, int64_t, int64_t, std::byte*) {
    return absl::NotFoundError("the file is gone");
  };
  At(0, 3) ^= std::byte{1};
  const absl::Status status = scrubber_->CheckNext();
  EXPECT_FALSE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the file is gone"));
}

}  // namespace
}  // namespace isotherm::cpu
