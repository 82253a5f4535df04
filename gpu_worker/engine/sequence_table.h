#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/step/step.h"
#include "gpu_worker/engine/sampler.h"

namespace isotherm::gpu {

// What the worker keeps of a sequence between steps. The gateway owns page numbers and decides when
// a sequence ends.
struct Sequence {
  std::vector<int32_t> pages;
  std::unique_ptr<SamplingState> sampling;
  TokenId last_token = -1;    // sampled last
  int32_t next_position = 0;  // of the row that will carry it
};

class SequenceTable {
 public:
  explicit SequenceTable(int32_t num_pages) : num_pages_(num_pages) {}

  // Releases, appends pages and takes sampling parameters, in that order. InvalidArgument, with
  // nothing changed, for a page number that the pool does not have.
  absl::Status Apply(const StepRequest& request);
  Sequence* Find(SequenceId id);
  void Clear() { sequences_.clear(); }
  size_t size() const { return sequences_.size(); }

 private:
  const int32_t num_pages_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
};

}  // namespace isotherm::gpu
