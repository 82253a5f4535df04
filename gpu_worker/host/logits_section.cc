#include "gpu_worker/host/logits_section.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kernels/matmul.h"
#include "gpu_worker/host/norm.h"

namespace isotherm::gpu {

LogitsSection::LogitsSection(const ModelConfig& config, bool bf16, const HostWeights& weights,
                             ThreadPool& pool)
    : config_(config), bf16_(bf16), weights_(weights), pool_(pool) {}

absl::Status LogitsSection::Run(std::span<const DeviceRow> rows, const float* x,
                                std::vector<DeviceSample>* samples) {
  std::vector<DeviceSample> out;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].sampling != nullptr) out.push_back({.row = static_cast<int64_t>(r)});
  }
  if (out.empty()) return absl::OkStatus();
  const auto dim = static_cast<size_t>(config_.model_dim);
  const Matrix& head = weights_.logits_matrix();
  const auto vocab = static_cast<size_t>(head.rows);
  gathered_.resize(out.size() * dim);
  logits_.resize(out.size() * vocab);
  for (size_t i = 0; i < out.size(); ++i) {
    const std::span<float> row(gathered_.data() + i * dim, dim);
    NormRounded(config_, bf16_, x + out[i].row * config_.model_dim, weights_.output_norm, row);
  }
  ISOTHERM_RETURN_IF_ERROR(MatMul({.x = gathered_.data(),
                                   .x_stride = config_.model_dim,
                                   .num_rows = static_cast<int64_t>(out.size()),
                                   .w = View(head),
                                   .y = logits_.data(),
                                   .y_stride = head.rows},
                                  pool_));
  const auto sample = [&](size_t i) {
    out[i].token = rows[static_cast<size_t>(out[i].row)].sampling->Sample(
        std::span(logits_.data() + i * vocab, vocab), &out[i].logprobs);
  };
  if (out.size() == 1) {
    sample(0);
  } else {
    pool_.Run([&](int t) {
      for (size_t i = static_cast<size_t>(t); i < out.size();
           i += static_cast<size_t>(pool_.num_threads()))
        sample(i);
    });
  }
  for (const DeviceSample& item : out) {
    if (item.token < 0) {
      return absl::DataLossError(absl::StrCat(
          "the logits of row ", item.row, " are not numbers; check the model with models verify"));
    }
  }
  for (DeviceSample& item : out) samples->push_back(std::move(item));
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
