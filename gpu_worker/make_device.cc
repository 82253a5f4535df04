#include "gpu_worker/make_device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "gpu_worker/host/host_device.h"
#ifdef ISOTHERM_HAVE_CUDA
#include "gpu_worker/cuda/cuda_device.h"
#endif

namespace isotherm::gpu {
namespace {

absl::StatusOr<std::unique_ptr<Device>> MakeHostDevice(
    const ModelFile& model, const DeviceChoice& choice,
    const std::function<void(double)>& progress) {
  const BundleLayout& layout = model.bundle_layout();
  const int64_t all_bytes = layout.layer_bytes() * layout.num_layers;
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<HostDevice> device,
      HostDevice::Create(
          model,
          {.num_threads = choice.threads,
           .kv_pages = choice.kv_pages,
           .max_rows = choice.max_rows,
           .hot_capacity_bytes = choice.vram_budget >= 0 ? choice.vram_budget : all_bytes / 4,
           .poison_freed = choice.poison_freed},
          progress));
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace

#ifdef ISOTHERM_HAVE_CUDA

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ModelFile& model,
                                                   const DeviceChoice& choice,
                                                   const std::function<void(double)>& progress) {
  if (choice.device == "cpu" || (choice.device == "auto" && !HasCudaDevice()))
    return MakeHostDevice(model, choice, progress);
  // Larger steps read cold neurons from the mapped arena.
  constexpr int32_t kRowsWithoutArena = 64;
  const int32_t max_rows =
      choice.remote_cold_side ? std::min(choice.max_rows, kRowsWithoutArena) : choice.max_rows;
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device,
                            CudaDevice::Create(model,
                                               {.kv_pages = choice.kv_pages,
                                                .max_rows = max_rows,
                                                .context = choice.context,
                                                .vram_budget = choice.vram_budget,
                                                .stored_predictor = choice.stored_predictor,
                                                .streamed_share = choice.streamed_share,
                                                .product_rows = choice.product_rows,
                                                .early_launch = choice.early_launch},
                                               progress));
  return std::unique_ptr<Device>(std::move(device));
}

#else

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ModelFile& model,
                                                   const DeviceChoice& choice,
                                                   const std::function<void(double)>& progress) {
  if (choice.device == "cuda") {
    return WithExitCode(
        absl::FailedPreconditionError(
            "--device cuda: this program was built without CUDA; use --device cpu, or install a "
            "CUDA toolkit (./setup --cuda) and build again"),
        ExitCode::kCannotFit);
  }
  return MakeHostDevice(model, choice, progress);
}

#endif

}  // namespace isotherm::gpu
