#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/placement/placement_text.h"
#include "common/base/exit_code.h"

namespace isotherm::cli {
namespace {

struct Totals {
  int64_t in = 0, out = 0, both = 0;
};

Totals Sum(const std::vector<LayerDiff>& layers) {
  Totals total;
  for (const LayerDiff& layer : layers) {
    total.in += layer.in;
    total.out += layer.out;
    total.both += layer.both;
  }
  return total;
}

// Of the smaller hot set, how much is in the other one.
double Overlap(const Totals& total) {
  const int64_t smaller = total.both + std::min(total.in, total.out);
  return smaller > 0 ? static_cast<double>(total.both) / static_cast<double>(smaller) : 1;
}

}  // namespace

absl::StatusOr<std::vector<LayerDiff>> DiffPlans(const PlacementInfo& a, const PlacementInfo& b) {
  if (a.layers.size() != b.layers.size()) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                            "epoch ", a.epoch, " has ", a.layers.size(), " layers, epoch ", b.epoch,
                            " ", b.layers.size(), "; they are of different models")),
                        ExitCode::kBadData);
  }
  std::vector<LayerDiff> out;
  for (size_t l = 0; l < a.layers.size(); ++l) {
    const LayerShare &before = a.layers[l], &after = b.layers[l];
    if (before.total_neurons != after.total_neurons || before.hot.size() != after.hot.size() ||
        before.hot.empty()) {
      return WithExitCode(
          absl::InvalidArgumentError(absl::StrCat(
              "layer ", l, " of epochs ", a.epoch, " and ", b.epoch,
              " cannot be compared: they are of different models, or their hot sets are no "
              "longer kept")),
          ExitCode::kBadData);
    }
    LayerDiff diff{.share_before = before.predicted_hit_share,
                   .share_after = after.predicted_hit_share};
    for (size_t w = 0; w < before.hot.size(); ++w) {
      diff.in += std::popcount(after.hot[w] & ~before.hot[w]);
      diff.out += std::popcount(before.hot[w] & ~after.hot[w]);
      diff.both += std::popcount(before.hot[w] & after.hot[w]);
    }
    out.push_back(diff);
  }
  return out;
}

std::string DiffText(const PlacementInfo& a, const PlacementInfo& b,
                     const std::vector<LayerDiff>& layers) {
  const Totals total = Sum(layers);
  std::string out = absl::StrFormat(
      "epoch %d (%s) -> epoch %d (%s): %d neurons come, %d go, %d stay; %.0f %% of the smaller "
      "set is in both\n",
      a.epoch, a.cause, b.epoch, b.cause, total.in, total.out, total.both, 100 * Overlap(total));
  out += "layer   come     go   stay  expected hits\n";
  for (size_t l = 0; l < layers.size(); ++l) {
    const LayerDiff& layer = layers[l];
    absl::StrAppendFormat(&out, "%5d  %5d  %5d  %5d  %.0f %% -> %.0f %%\n", l, layer.in, layer.out,
                          layer.both, 100 * layer.share_before, 100 * layer.share_after);
  }
  return out;
}

nlohmann::ordered_json DiffJson(const PlacementInfo& a, const PlacementInfo& b,
                                const std::vector<LayerDiff>& layers) {
  const Totals total = Sum(layers);
  nlohmann::ordered_json json = {{"from_epoch", a.epoch}, {"to_epoch", b.epoch},
                                 {"come", total.in},      {"go", total.out},
                                 {"stay", total.both},    {"overlap", Overlap(total)}};
  json["layers"] = nlohmann::ordered_json::array();
  for (const LayerDiff& layer : layers) {
    json["layers"].push_back({{"come", layer.in},
                              {"go", layer.out},
                              {"stay", layer.both},
                              {"expected_hits_before", layer.share_before},
                              {"expected_hits_after", layer.share_after}});
  }
  return json;
}

}  // namespace isotherm::cli
