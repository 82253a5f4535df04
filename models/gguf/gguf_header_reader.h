#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/gguf/gguf_file.h"
#include "models/gguf/gguf_limits.h"

namespace isotherm {

// Fills a GgufFile, whose descriptor and size are set, from the file's header. Every count is
// compared with its limit and with the bytes left before anything is allocated for it. Used by
// GgufFile::Open() only.
class GgufHeaderReader {
 public:
  GgufHeaderReader(GgufFile* file, uint64_t file_bytes);
  // DataLoss names the field, what it is and what is allowed.
  absl::Status Parse();

 private:
  absl::Status Fail(absl::string_view what) const;
  uint64_t left() const { return limit_ - at_; }

  // Makes the header text hold bytes at_ .. at_ + count.
  absl::Status Need(uint64_t count, absl::string_view field);
  absl::Status Take(void* out, uint64_t count, absl::string_view field);
  // Checks a string's length and steps over it.
  absl::Status SkipString(uint64_t max_bytes, absl::string_view field, GgufValue* value);
  absl::StatusOr<std::string> TakeName(uint64_t max_bytes, absl::string_view field);

  absl::Status ParseFixed(uint64_t* num_tensors, uint64_t* num_keys);
  absl::Status ParseKey();
  absl::Status ParseScalar(uint32_t tag, absl::string_view key, GgufValue* value);
  absl::Status ParseArray(absl::string_view key, GgufValue* value);
  absl::Status CheckKeys();
  absl::Status ParseTensor();
  absl::Status ParseShape(GgufTensor* tensor);
  absl::Status SizeTensor(GgufTensor* tensor) const;
  absl::Status CheckExtents();

  GgufFile* const file_;
  const uint64_t file_bytes_;
  const uint64_t limit_;  // the header must end before it
  uint64_t at_ = 0;
  uint64_t alignment_ = GgufLimits::kDefaultAlignment;
  bool gpu_split_ = false;  // PowerInfer's split file: type 18 is I32, buckets may be empty
};

}  // namespace isotherm
