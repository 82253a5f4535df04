#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/integration/client_load.h"
#include "tests/reference/integer_model.h"

namespace isotherm::integration {

// Of an IntegerModelFile.
inline constexpr int64_t kAllNeuronBytes = 4 * 256 * 256;

// An integer-weight model in a file of its own, and requests with the oracle's answers. Its bundles
// are 256 bytes: 64 KiB a layer, 256 KiB in all.
class IntegerModelFile {
 public:
  // bundle_ordered: neurons in bundle order, for the cpu_worker to map (--arena map).
  explicit IntegerModelFile(uint64_t seed, bool bundle_ordered = false);
  ~IntegerModelFile();
  IntegerModelFile(const IntegerModelFile&) = delete;
  IntegerModelFile& operator=(const IntegerModelFile&) = delete;

  const std::string& path() const { return path_; }
  // `count` prompts of 1 to 39 tokens; the answers have `num_tokens`.
  std::vector<GoldenRequest> Requests(int count, int num_tokens) const;

 private:
  const reference::IntegerModel model_;
  const uint64_t seed_;
  std::string path_;
};

// Gtest failures unless the request's answer is golden.
void ExpectGolden(const Cluster& cluster, const GoldenRequest& request);
// Asks until an answer is golden; false when none was within `timeout`.
bool GoldenWithin(const Cluster& cluster, const GoldenRequest& request,
                  std::chrono::milliseconds timeout);

}  // namespace isotherm::integration
