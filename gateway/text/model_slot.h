#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "gateway/text/text_model.h"

namespace isotherm {

// The one model served: empty until it is loaded, then for ever the same. Thread-safe.
class ModelSlot {
 public:
  // `name`: what it is called until, and if `alias` is empty also after, its file is read.
  ModelSlot(std::string name, std::string alias)
      : name_(std::move(name)), alias_(std::move(alias)) {}

  void Set(std::shared_ptr<const TextModel> model) {
    absl::MutexLock lock(&mu_);
    model_ = std::move(model);
  }
  // Null while loading. Shared, as requests may outlive the slot's owner during a shutdown.
  std::shared_ptr<const TextModel> Get() const {
    absl::MutexLock lock(&mu_);
    return model_;
  }

  // Unavailable (MODEL_LOADING) or NotFound (MODEL_NOT_FOUND).
  absl::StatusOr<std::shared_ptr<const TextModel>> Find(absl::string_view model) const;
  bool Matches(absl::string_view model) const;
  const std::string& served_name() const { return alias_.empty() ? name_ : alias_; }
  std::vector<std::string> aliases() const;

 private:
  const std::string name_;
  const std::string alias_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const TextModel> model_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
