#include "gpu_worker/device_shortage.h"

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/units.h"

namespace isotherm::gpu {

absl::Status ShortageStatus(const DeviceShortage& shortage) {
  const bool never = shortage.total_bytes > 0 && shortage.needed_bytes > shortage.total_bytes;
  const std::string have = never ? absl::StrCat("it has ", FormatBytes(shortage.total_bytes))
                                 : absl::StrCat(FormatBytes(shortage.free_bytes), " are free");
  return WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                          "the GPU's memory is short: ", shortage.what, " needs ",
                          FormatBytes(shortage.needed_bytes), ", ", have, "; ", shortage.remedy)),
                      never ? ExitCode::kCannotFit : ExitCode::kShortage);
}

}  // namespace isotherm::gpu
