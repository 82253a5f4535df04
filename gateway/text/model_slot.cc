#include "gateway/text/model_slot.h"

#include <chrono>

#include "common/base/error_reason.h"

namespace isotherm {

bool ModelSlot::Matches(absl::string_view model) const {
  return model.empty() || model == name_ || (!alias_.empty() && model == alias_);
}

std::vector<std::string> ModelSlot::aliases() const {
  if (alias_.empty() || alias_ == name_) return {};
  return {name_};
}

absl::StatusOr<std::shared_ptr<const TextModel>> ModelSlot::Find(absl::string_view model) const {
  if (!Matches(model)) {
    return WithErrorReason(
        absl::NotFoundError("no such model is served here; ModelInfo lists them"),
        {.reason = "MODEL_NOT_FOUND", .field = "model"});
  }
  std::shared_ptr<const TextModel> loaded = Get();
  if (loaded == nullptr) {
    return WithErrorReason(absl::UnavailableError("the model is loading; try again soon"),
                           {.reason = "MODEL_LOADING", .retry_after = std::chrono::seconds(1)});
  }
  return loaded;
}

}  // namespace isotherm
