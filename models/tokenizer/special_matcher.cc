#include "models/tokenizer/special_matcher.h"

#include "absl/strings/str_cat.h"

namespace isotherm {
namespace {

constexpr size_t kMaxSpecialBytes = 256;

uint64_t EdgeKey(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

absl::StatusOr<SpecialMatcher> SpecialMatcher::Create(const Vocabulary& vocab) {
  SpecialMatcher matcher;
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const bool control = vocab.IsControl(id);
    if (!control && vocab.type(id) != TokenType::kUserDefined) continue;
    const absl::string_view text = vocab.text(id);
    if (text.size() > kMaxSpecialBytes) {
      return absl::InvalidArgumentError(absl::StrCat("special token ", id, " has ", text.size(),
                                                     " bytes; at most ", kMaxSpecialBytes,
                                                     " are supported"));
    }
    if (!text.empty()) matcher.Insert(text, id, control);
  }
  return matcher;
}

void SpecialMatcher::Insert(absl::string_view text, int32_t id, bool control) {
  starts_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto [edge, added] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(nodes_.size()));
    node = edge->second;
    if (added) nodes_.emplace_back();
  }
  nodes_[node] = {id, control};
}

SpecialMatcher::Match SpecialMatcher::FindNext(absl::string_view text, size_t from,
                                               const std::vector<Range>& trusted,
                                               size_t& cursor) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
    while (cursor < trusted.size() && trusted[cursor].end <= begin) ++cursor;
    // Where a control token that begins here has to end at the latest.
    const size_t control_end =
        cursor < trusted.size() && trusted[cursor].begin <= begin ? trusted[cursor].end : begin;
    Match best;
    uint32_t node = 0;
    for (size_t end = begin; end < text.size();) {
      const auto edge = edges_.find(EdgeKey(node, text[end]));
      if (edge == edges_.end()) break;
      node = edge->second;
      ++end;
      if (nodes_[node].id == kNoToken || (nodes_[node].control && end > control_end)) continue;
      best = {nodes_[node].id, begin, end};
    }
    if (best.id != kNoToken) return best;
  }
  return {};
}

}  // namespace isotherm
