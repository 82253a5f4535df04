#include "gpu_worker/engine/sequence_table.h"

#include "absl/strings/str_cat.h"

namespace isotherm::gpu {

absl::Status SequenceTable::Apply(const StepRequest& request) {
  for (const PageTableChange& change : request.page_table) {
    for (const int32_t page : change.append_pages) {
      if (page < 0 || page >= num_pages_) {
        return absl::InvalidArgumentError(absl::StrCat(
            "sequence ", change.sequence, " is given page ", page, "; the pool has ", num_pages_));
      }
    }
  }
  for (const SequenceId id : request.release_sequences) sequences_.erase(id);
  const auto get = [this](SequenceId id) -> Sequence& {
    std::unique_ptr<Sequence>& sequence = sequences_[id];
    if (sequence == nullptr) sequence = std::make_unique<Sequence>();
    return *sequence;
  };
  for (const PageTableChange& change : request.page_table) {
    Sequence& sequence = get(change.sequence);
    sequence.pages.insert(sequence.pages.end(), change.append_pages.begin(),
                          change.append_pages.end());
  }
  for (const SequenceSampling& sampling : request.sampling) {
    get(sampling.sequence).sampling = std::make_unique<SamplingState>(sampling);
  }
  return absl::OkStatus();
}

Sequence* SequenceTable::Find(SequenceId id) {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

}  // namespace isotherm::gpu
