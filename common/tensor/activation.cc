#include "common/tensor/activation.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace isotherm {
namespace {

constexpr std::array kActivations = {Activation::kRelu, Activation::kSilu, Activation::kGelu};

}  // namespace

absl::string_view Name(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return "relu";
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
  }
  ISOTHERM_CHECK(!"unknown Activation");
  __builtin_unreachable();
}

absl::StatusOr<Activation> ActivationFromName(absl::string_view name) {
  for (const Activation activation : kActivations) {
    if (Name(activation) == name) return activation;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("activation: got '", name, "', wanted relu, silu or gelu"));
}

}  // namespace isotherm
