// The CUDA backend and a cpu_worker's engine, joined by the shared memory that the two processes
// use: the integer-weight model, bit for bit, however the neurons are divided between hot ones,
// those read over PCIe and those of the cpu side, and however many rows a step has.
#include <stdlib.h>

#include <filesystem>
#include <numeric>
#include <random>

#include "common/shm/handoff.h"
#include "cpu_worker/engine/cpu_worker.h"
#include "cpu_worker/engine/model_source.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/engine/shm_cold_attachment.h"
#include "gtest/gtest.h"
#include "tests/reference/integer_model.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kEpoch = 1;

struct Division {
  double hot = 0;       // of each layer's neurons
  double streamed = 0;  // of the cold ones; below 0: adapted
  DType dtype = DType::kF16;
  int64_t ffn_dim = 256;
};

void PrintTo(const Division& d, std::ostream* os) {
  *os << Name(d.dtype) << " of " << d.ffn_dim << ", hot " << d.hot << ", streamed " << d.streamed;
}

// A device and a cpu side in one process.
class Pair {
 public:
  Pair(const reference::IntegerModel& model, const Division& division, int32_t product_rows) {
    folder_ = (std::filesystem::temp_directory_path() / "isotherm-cold-XXXXXX").string();
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    const std::string path = folder_ + "/model.gguf";
    EXPECT_TRUE(model.Write(path, division.dtype).ok());
    const absl::Status status = Open(path, division, product_rows);
    EXPECT_TRUE(status.ok()) << status;
  }
  ~Pair() {
    if (device_ != nullptr) device_->Settle();
    mapping_.reset();
    attachment_.reset();
    cpu_worker_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  // then: rows of the next step, which may begin early; none: not known.
  absl::Status Run(const std::vector<DeviceRow>& rows, DeviceOutput* output,
                   const std::vector<DeviceRow>& then = {}) {
    const TimePoint deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    const DeviceBatch next{
        .step_id = step_id_ + 2, .epoch = kEpoch, .deadline = deadline, .rows = then};
    return device_->RunStep({.step_id = ++step_id_,
                             .epoch = kEpoch,
                             .deadline = deadline,
                             .rows = rows,
                             .next = then.empty() ? nullptr : &next},
                            {.link = &attachment_->link(), .arena = attachment_->arena()}, output);
  }
  // A whole prompt in one step; what is sampled behind it.
  TokenId Feed(const std::vector<int32_t>& prompt, const std::vector<int32_t>& pages,
               SamplingState* sampling) {
    std::vector<DeviceRow> rows;
    for (size_t p = 0; p < prompt.size(); ++p) {
      rows.push_back({.token = prompt[p],
                      .position = static_cast<int32_t>(p),
                      .pages = pages,
                      .sampling = p + 1 == prompt.size() ? sampling : nullptr});
    }
    DeviceOutput output;
    const absl::Status status = Run(rows, &output);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_FALSE(output.next_begun);
    return output.samples.empty() ? -1 : output.samples.back().token;
  }
  CudaDevice& device() { return *device_; }

 private:
  absl::Status Open(const std::string& path, const Division& division, int32_t product_rows) {
    auto opened = ModelFile::Open(path);
    if (!opened.ok()) return opened.status();
    model_ = *std::move(opened);
    auto device = CudaDevice::Create(*model_, {.kv_pages = 256,
                                               .max_rows = 512,
                                               .stored_predictor = true,
                                               .streamed_share = division.streamed,
                                               .product_rows = product_rows});
    if (!device.ok()) return device.status();
    device_ = *std::move(device);
    constexpr int32_t kSharedRows = 256;
    cpu_worker_ = std::make_unique<cpu::CpuWorker>(
        cpu::CpuWorker::Options{.socket_dir = folder_, .num_threads = 2, .max_rows = kSharedRows});
    auto source = cpu::SourceOf(model_);
    if (!source.ok()) return source.status();
    absl::Status status =
        cpu_worker_->Load(*source, model_->config().digest, [](double) { return true; });
    if (!status.ok()) return status;
    auto parts = cpu_worker_->parts();
    if (!parts.ok()) return parts.status();
    const BundleLayout& layout = model_->bundle_layout();
    auto offer = (*parts)->attachments->Open("test", shm::LayoutHash(ArenaShapeOf(layout)),
                                             kSharedRows, /*device_rings=*/true);
    if (!offer.ok()) return offer.status();
    auto handoff =
        shm::TakeHandoff(offer->socket_path, offer->handoff_token, std::chrono::milliseconds(2000));
    if (!handoff.ok()) return handoff.status();
    auto attachment = ShmColdAttachment::Attach(*std::move(handoff),
                                                {.nonce = offer->nonce,
                                                 .arena_bytes = offer->arena_bytes,
                                                 .control_bytes = offer->control_bytes,
                                                 .arena_is_model_file = offer->arena_is_model_file},
                                                *model_);
    if (!attachment.ok()) return attachment.status();
    attachment_ = *std::move(attachment);
    ColdAttachment& cold = *attachment_;
    auto mapping = device_->Map({.link = &cold.link(), .arena = cold.arena()});
    if (!mapping.ok()) return mapping.status();
    mapping_ = *std::move(mapping);

    PlacementPlan plan{.epoch = kEpoch, .model_digest = model_->config().digest};
    std::mt19937_64 random(7);
    for (int64_t l = 0; l < layout.num_layers; ++l) {
      LayerPlacement layer{.num_neurons = layout.num_neurons};
      layer.hot.assign(static_cast<size_t>((layout.num_neurons + 63) / 64), 0);
      for (int64_t n = 0; n < layout.num_neurons; ++n) {
        if (static_cast<double>(random() % 1000) >= division.hot * 1000) continue;
        layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
        ++layer.num_hot;
      }
      plan.layers.push_back(std::move(layer));
    }
    status = device_->Prepare(plan, cold.arena(), {});
    if (!status.ok()) return status;
    const auto planned = (*parts)->epochs->Plan(plan, 1);
    if (!planned.ok()) return planned.status();
    return (*parts)->epochs->Commit(kEpoch, 1);
  }

  std::string folder_;
  std::shared_ptr<const ModelFile> model_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<cpu::CpuWorker> cpu_worker_;
  std::unique_ptr<ShmColdAttachment> attachment_;
  std::shared_ptr<void> mapping_;
  int64_t step_id_ = 0;
};

class CudaColdTest : public testing::TestWithParam<Division> {
 protected:
  void SetUp() override {
    if (!HasCudaDevice()) GTEST_SKIP() << "no CUDA GPU on this machine";
  }
  static std::vector<std::vector<int32_t>> Pages(size_t sequences, int32_t each) {
    std::vector<std::vector<int32_t>> pages(sequences);
    for (size_t s = 0; s < sequences; ++s) {
      pages[s].resize(static_cast<size_t>(each));
      std::iota(pages[s].begin(), pages[s].end(), static_cast<int32_t>(s) * each);
    }
    return pages;
  }
};

// One prompt in steps of several sizes: through the graph, through products that the cpu side
// shares, through products alone with listed neurons and, of mostly cold layers, with copied ones.
TEST_P(CudaColdTest, PromptsOfAnyLengthGiveTheGoldenResidual) {
  const reference::IntegerModel model({.ffn_dim = GetParam().ffn_dim, .seed = 5});
  std::mt19937_64 random(3);
  std::vector<int32_t> prompt(420);
  for (int32_t& id : prompt)
    id = static_cast<int32_t>(random() % static_cast<uint64_t>(model.options().vocab_size));
  std::vector<std::vector<std::vector<int64_t>>> residual;
  const std::vector<int32_t> golden = model.Golden(prompt, 1, &residual);
  for (const int32_t product_rows : {5, 65}) {
    Pair pair(model, GetParam(), product_rows);
    const auto pages = Pages(1, 32);
    for (const size_t chunk : {420, 200, 73, 20, 8, 3}) {
      SamplingState greedy({.params = {.temperature = 0}});
      DeviceOutput output;
      size_t rows_of_last = 0;
      for (size_t at = 0; at < prompt.size(); at += chunk) {
        std::vector<DeviceRow> rows;
        for (size_t p = at; p < std::min(prompt.size(), at + chunk); ++p) {
          rows.push_back({.token = prompt[p],
                          .position = static_cast<int32_t>(p),
                          .pages = pages[0],
                          .sampling = p + 1 == prompt.size() ? &greedy : nullptr});
        }
        rows_of_last = rows.size();
        const absl::Status status = pair.Run(rows, &output);
        ASSERT_TRUE(status.ok()) << status << " at " << at << " of chunk " << chunk;
      }
      ASSERT_EQ(output.samples.size(), 1u);
      EXPECT_EQ(output.samples[0].token, golden[0]) << "chunk " << chunk;
      const std::vector<float> got = pair.device().Residual(static_cast<int64_t>(rows_of_last));
      for (size_t r = 0; r < rows_of_last; ++r) {
        const auto& want = residual[prompt.size() - rows_of_last + r].back();
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_EQ(got[r * want.size() + i], static_cast<float>(want[i]))
              << "chunk " << chunk << ", products from " << product_rows << ", row " << r
              << ", column " << i;
        }
      }
    }
  }
}

TEST_P(CudaColdTest, BatchesOfAnySizeGiveTheGoldenTokens) {
  const reference::IntegerModel model({.ffn_dim = GetParam().ffn_dim, .seed = 6});
  const std::vector<std::vector<int32_t>> prompts = model.Prompts(17, 40);
  for (const int32_t product_rows : {5, 65}) {
    Pair pair(model, GetParam(), product_rows);
    const auto pages = Pages(prompts.size(), 5);
    std::vector<std::vector<TokenId>> out(prompts.size());
    std::vector<SamplingState> states(prompts.size(),
                                      SamplingState({.params = {.temperature = 0}}));
    DeviceOutput output;
    for (size_t s = 0; s < prompts.size(); ++s)
      out[s].push_back(pair.Feed(prompts[s], pages[s], &states[s]));
    for (const size_t batch : {40, 17, 16, 9, 8, 7, 5, 4, 3, 2, 1}) {
      std::vector<DeviceRow> rows;
      for (size_t s = 0; s < batch; ++s) {
        rows.push_back({.token = out[s].back(),
                        .position = static_cast<int32_t>(prompts[s].size() + out[s].size() - 1),
                        .pages = pages[s],
                        .sampling = &states[s]});
      }
      const absl::Status status = pair.Run(rows, &output);
      ASSERT_TRUE(status.ok()) << status << " with " << batch << " rows";
      for (size_t s = 0; s < batch; ++s) out[s].push_back(output.samples[s].token);
    }
    for (size_t s = 0; s < prompts.size(); ++s) {
      EXPECT_EQ(out[s], model.Golden(prompts[s], static_cast<int64_t>(out[s].size())))
          << "sequence " << s << ", products from " << product_rows;
    }
  }
}

// Steps that begin behind the one that samples their tokens, some of which are then not wanted.
TEST_P(CudaColdTest, StepsBegunEarlyGiveTheGoldenTokens) {
  const reference::IntegerModel model({.ffn_dim = GetParam().ffn_dim, .seed = 8});
  const std::vector<std::vector<int32_t>> prompts = model.Prompts(17, 3);
  Pair pair(model, GetParam(), 65);
  const auto pages = Pages(prompts.size(), 8);
  std::vector<std::vector<TokenId>> out(prompts.size());
  std::vector<SamplingState> states(prompts.size(), SamplingState({.params = {.temperature = 0}}));
  DeviceOutput output;
  for (size_t s = 0; s < prompts.size(); ++s)
    out[s].push_back(pair.Feed(prompts[s], pages[s], &states[s]));
  const auto rows_of = [&](size_t sequences, int32_t ahead) {
    std::vector<DeviceRow> rows;
    for (size_t s = 0; s < sequences; ++s) {
      rows.push_back(
          {.token = ahead == 0 ? out[s].back() : kSampledToken,
           .position = static_cast<int32_t>(prompts[s].size() + out[s].size()) - 1 + ahead,
           .pages = pages[s],
           .sampling = &states[s]});
    }
    return rows;
  };
  size_t sequences = 3;
  for (int step = 0; step < 60; ++step) {
    // Now and then another batch comes than the one that was told.
    const std::vector<DeviceRow> then = rows_of(sequences, 1);
    const absl::Status status = pair.Run(rows_of(sequences, 0), &output, then);
    ASSERT_TRUE(status.ok()) << status << " at step " << step;
    EXPECT_TRUE(output.next_begun);
    for (size_t s = 0; s < sequences; ++s) out[s].push_back(output.samples[s].token);
    if (step % 7 == 6) sequences = sequences % 3 + 1;
    if (step % 11 == 10) pair.device().Settle();
  }
  for (size_t s = 0; s < prompts.size(); ++s) {
    EXPECT_EQ(out[s], model.Golden(prompts[s], static_cast<int64_t>(out[s].size()))) << s;
    EXPECT_EQ(states[s].num_sampled(), static_cast<int32_t>(out[s].size()));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Divisions, CudaColdTest,
    testing::Values(Division{0.0, 0.0}, Division{0.0, 0.5}, Division{0.0, 1.0}, Division{0.1, 0.5},
                    Division{0.5, 0.4}, Division{1.0, 0.5}, Division{0.0, -1}, Division{0.2, -1},
                    Division{0.6, -1, DType::kQ8_0}, Division{0.3, 0.5, DType::kBF16},
                    Division{0.3, 0.5, DType::kQ8_0}, Division{0.2, 0.5, DType::kQ4_0},
                    Division{0.2, 0.6, DType::kF16, 328}));

}  // namespace
}  // namespace isotherm::gpu
