#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/vocabulary.h"

namespace isotherm {

// Finds control and user-defined tokens spelled in a text: the leftmost first, the longest there.
// Immutable, any thread.
class SpecialMatcher {
 public:
  // InvalidArgument if a special token is longer than 256 bytes: that bounds the work per byte.
  static absl::StatusOr<SpecialMatcher> Create(const Vocabulary& vocab);

  struct Match {
    int32_t id = kNoToken;
    size_t begin = 0;
    size_t end = 0;
  };
  struct Range {
    size_t begin;
    size_t end;
  };
  // The first match at or after `from`; id kNoToken if there is none. Control tokens match only
  // inside one of the `trusted` byte ranges (disjoint, not adjacent, ascending). `cursor` starts
  // at 0 and is handed back with the same `trusted` and a growing `from`.
  Match FindNext(absl::string_view text, size_t from, const std::vector<Range>& trusted,
                 size_t& cursor) const;

 private:
  struct Node {
    int32_t id = kNoToken;
    bool control = false;
  };
  SpecialMatcher() = default;
  void Insert(absl::string_view text, int32_t id, bool control);

  std::vector<Node> nodes_{1};
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node
  std::array<bool, 256> starts_{};                 // bytes that begin a special token
};

}  // namespace isotherm
