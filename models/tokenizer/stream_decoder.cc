#include "models/tokenizer/stream_decoder.h"

#include <utility>

#include "models/tokenizer/tokenizer.h"
#include "models/tokenizer/utf8.h"

namespace isotherm {

std::string StreamDecoder::Append(int32_t id) {
  if (tokenizer_.IsControl(id)) return "";
  const std::string bytes = std::exchange(held_, "") + tokenizer_.Piece(id);
  // Only the last three bytes can begin an incomplete character.
  for (size_t tail = std::min<size_t>(3, bytes.size()); tail > 0; --tail) {
    const absl::string_view end = absl::string_view(bytes).substr(bytes.size() - tail);
    const Utf8Prefix prefix = ClassifyUtf8(end);
    if (prefix.status == Utf8Status::kIncomplete && prefix.length == tail) {
      held_ = std::string(end);
      return ReplaceInvalidUtf8(absl::string_view(bytes).substr(0, bytes.size() - tail));
    }
  }
  return ReplaceInvalidUtf8(bytes);
}

std::string StreamDecoder::Finish() { return ReplaceInvalidUtf8(std::exchange(held_, "")); }

}  // namespace isotherm
