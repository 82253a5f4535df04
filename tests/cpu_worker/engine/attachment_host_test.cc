#include "cpu_worker/engine/attachment_host.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/cpu_worker/gpu_attachment.h"
#include "tests/cpu_worker/toy_model.h"

namespace isotherm::cpu {
namespace {

using std::chrono::milliseconds;

shm::TimePoint In(milliseconds time) { return std::chrono::steady_clock::now() + time; }

class AttachmentHostTest : public testing::Test {
 protected:
  void SetUp() override {
    arena_ = *Arena::Load(ToySource(), {});
    engine_ =
        *ColdEngine::Create(*arena_, epochs_, ledger_, events_, {.num_threads = 2, .max_rows = 8});
    auto host =
        AttachmentHost::Start(*arena_, *engine_, events_, {.socket_dir = directory_.path()});
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
  }
  absl::StatusOr<shm::ArenaOffer> Offer(const std::string& peer) {
    return host_->Open(peer, shm::LayoutHash(ToySource().shape), 4);
  }
  absl::StatusOr<std::unique_ptr<shm::GpuAttachment>> Attach(const std::string& peer) {
    auto offer = Offer(peer);
    if (!offer.ok()) return offer.status();
    return shm::GpuAttachment::Open(*offer, {.shape = ToySource().shape});
  }
  // The host's side of an end is seen some microseconds after ours.
  bool AttachedBecomes(bool wanted) {
    const auto end = In(milliseconds(10'000));
    while (host_->attached() != wanted && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    return host_->attached() == wanted;
  }
  static absl::Status OneLayer(shm::GpuAttachment& attachment, int64_t step) {
    const ToyPost post(2, static_cast<uint32_t>(step));
    const shm::ColdLayerHeader header{.step_id = step,
                                      .layer = 1,
                                      .num_rows = 2,
                                      .cut = 100,
                                      .deadline = In(milliseconds(20'000))};
    shm::SlotClient& client = attachment.client();
    auto buffers = client.BeginPost(2, header.deadline);
    if (!buffers.ok()) return buffers.status();
    std::copy(post.z.begin(), post.z.end(), buffers->z);
    std::copy(post.active.begin(), post.active.end(), buffers->active);
    std::copy(post.row_keys.begin(), post.row_keys.end(), buffers->row_keys);
    if (absl::Status status = client.Commit(header); !status.ok()) return status;
    auto result = client.Wait(header.deadline);
    if (!result.ok()) return result.status();
    const auto want = ToyReference(attachment.arena() + attachment.geometry().LayerOffset(1),
                                   header, client.hash_nonce(), post, nullptr);
    if (result->work_hash != want.work_hash) return absl::DataLossError("work hash");
    for (size_t i = 0; i < want.partial.size(); ++i) {
      if (static_cast<double>(result->partial[i]) != want.partial[i]) {
        return absl::DataLossError("partial sum");
      }
    }
    return absl::OkStatus();
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Arena> arena_;
  EpochTables epochs_{{.num_layers = 3, .num_neurons = 100, .digest = kToyDigest}};
  StepLedger ledger_;
  WorkerEvents events_;
  std::unique_ptr<ColdEngine> engine_;
  std::unique_ptr<AttachmentHost> host_;
};

TEST_F(AttachmentHostTest, AGpuWorkerReadsTheArenaAndGetsItsColdLayers) {
  auto attachment = Attach("gpu");
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  for (int step = 0; step < 50; ++step) {
    const absl::Status status = OneLayer(**attachment, step);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(host_->attached());
}

TEST_F(AttachmentHostTest, StaysAwakeLongerForADeviceThatRingsByItself) {
  const std::chrono::nanoseconds usual = engine_->spin();
  auto offer = host_->Open("gpu", shm::LayoutHash(ToySource().shape), 4, /*device_rings=*/true);
  ASSERT_TRUE(offer.ok()) << offer.status();
  auto attachment = shm::GpuAttachment::Open(*offer, {.shape = ToySource().shape});
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  EXPECT_TRUE(OneLayer(**attachment, 1).ok());
  EXPECT_EQ(engine_->spin(), shm::WaitOptions().device_spin);
  attachment->reset();
  ASSERT_TRUE(AttachedBecomes(false));
  EXPECT_EQ(engine_->spin(), usual);
}

TEST_F(AttachmentHostTest, AnotherGpuWorkerHasToWait) {
  auto first = Attach("first");
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(AttachedBecomes(true));
  EXPECT_TRUE(absl::IsUnavailable(Offer("second").status()));
  first->reset();
  ASSERT_TRUE(AttachedBecomes(false));
  auto second = Attach("second");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(OneLayer(**second, 1).ok());
}

TEST_F(AttachmentHostTest, TheSameOneAskingAgainEndsWhatItHad) {
  auto first = Attach("gpu");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(AttachedBecomes(true));
  auto second = Attach("gpu");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE((*first)->nonce() == (*second)->nonce());
  EXPECT_TRUE(absl::IsUnavailable(OneLayer(**first, 1)));
  EXPECT_TRUE(OneLayer(**second, 1).ok());
}

TEST_F(AttachmentHostTest, CloseEndsTheAttachmentAndWithdrawsAnOffer) {
  auto attachment = Attach("gpu");
  ASSERT_TRUE(attachment.ok());
  ASSERT_TRUE(AttachedBecomes(true));
  EXPECT_TRUE(absl::IsNotFound(host_->Close({1, 2})));
  ASSERT_TRUE(host_->Close((*attachment)->nonce()).ok());
  EXPECT_TRUE(absl::IsUnavailable(OneLayer(**attachment, 1)));
  auto offer = Offer("gpu");
  ASSERT_TRUE(offer.ok());
  ASSERT_TRUE(host_->Close(offer->nonce).ok());
  EXPECT_FALSE(shm::GpuAttachment::Open(*offer, {.shape = ToySource().shape}).ok());
}

TEST_F(AttachmentHostTest, TheArenaOutlivesTheHost) {
  std::atomic<int> deaths{0};
  auto offer = Offer("gpu");
  ASSERT_TRUE(offer.ok());
  auto attachment = shm::GpuAttachment::Open(
      *offer, {.shape = ToySource().shape, .on_dead = [&](const absl::Status&) { ++deaths; }});
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  ASSERT_TRUE(AttachedBecomes(true));
  host_.reset();
  engine_.reset();
  arena_.reset();
  EXPECT_TRUE(absl::IsUnavailable(OneLayer(**attachment, 1)));
  while (deaths == 0) std::this_thread::yield();
  EXPECT_EQ((*attachment)->peer_state(), shm::PeerState::kDead);
  std::vector<std::byte> want(static_cast<size_t>((*attachment)->geometry().layer_bytes()));
  ASSERT_TRUE(ToySource().pack(2, 0, 100, want.data()).ok());
  EXPECT_EQ(
      std::memcmp(want.data(), (*attachment)->arena() + (*attachment)->geometry().LayerOffset(2),
                  want.size()),
      0);
}

TEST_F(AttachmentHostTest, WrongLayoutsAndSizesAreRefused) {
  EXPECT_TRUE(absl::IsFailedPrecondition(host_->Open("gpu", 1, 4).status()));
  const uint64_t layout = shm::LayoutHash(ToySource().shape);
  EXPECT_TRUE(absl::IsInvalidArgument(host_->Open("gpu", layout, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(host_->Open("gpu", layout, 9).status()));
  auto offer = Offer("gpu");
  ASSERT_TRUE(offer.ok());
  shm::ArenaShape other = ToySource().shape;
  other.num_layers = 2;
  EXPECT_TRUE(
      absl::IsFailedPrecondition(shm::GpuAttachment::Open(*offer, {.shape = other}).status()));
}

TEST_F(AttachmentHostTest, AttachingAndLeavingLeaksNothing) {
  ASSERT_TRUE(Attach("gpu").ok());
  ASSERT_TRUE(AttachedBecomes(false));
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 20; ++i) {
    auto attachment = Attach("gpu");
    ASSERT_TRUE(attachment.ok()) << attachment.status();
    EXPECT_TRUE(OneLayer(**attachment, i).ok());
    attachment->reset();
    ASSERT_TRUE(AttachedBecomes(false));
  }
  const auto end = In(milliseconds(5000));  // the last session is destroyed just after
  while (OpenDescriptors() > before && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
  EXPECT_LE(OpenDescriptors(), before);
}

}  // namespace
}  // namespace isotherm::cpu
