#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/file_identity.h"
#include "common/base/unique_fd.h"
#include "models/gguf/gguf_value.h"

namespace isotherm {

struct GgufTensor {
  std::string name;
  int num_dims = 0;
  std::array<int64_t, 4> shape = {1, 1, 1, 1};  // fastest first, as in the file
  uint32_t ggml_type = 0;
  int64_t offset = 0;  // from the start of the file
  int64_t bytes = 0;

  int64_t columns() const { return shape[0]; }
  int64_t rows() const { return shape[1] * shape[2] * shape[3]; }
};

// A GGUF file (magic GGUF, or PWRI of PowerInfer), opened read-only. Everything in the header is
// checked before it is used; the data is read with pread, so a file that shrinks gives an error,
// never a signal. Immutable after Open(): any thread may read.
class GgufFile {
 public:
  // NotFound, or DataLoss that names the field, what was found and what is allowed. All with exit
  // code 65.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  bool is_powerinfer() const { return powerinfer_; }
  int64_t file_bytes() const { return identity_.bytes; }
  // Of the file as it was opened.
  const FileIdentity& identity() const { return identity_; }
  // Read-only; the file's as long as this object lives.
  int fd() const { return fd_.get(); }
  int64_t num_keys() const { return static_cast<int64_t>(keys_.size()); }

  // The getters name the key that is missing or of another type, and the type wanted.
  bool Has(absl::string_view key) const { return keys_.contains(key); }
  // Any integer type; a negative value or one above 2^63 - 1 is an error.
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  // f32 or f64; infinities and NaN pass.
  absl::StatusOr<float> GetFloat(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  absl::StatusOr<std::vector<std::string>> GetStrings(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloats(absl::string_view key) const;
  // Any integer type whose values fit.
  absl::StatusOr<std::vector<int32_t>> GetInts(absl::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(absl::string_view name) const;

  // Fills `out` from the tensor's bytes at `byte_offset`. DataLoss when the file has become
  // shorter.
  absl::Status Read(const GgufTensor& tensor, int64_t byte_offset, std::span<std::byte> out) const;

  // FNV-1a of the header text (everything before the data): the same file gives the same digest.
  const std::string& header_digest() const { return header_digest_; }

  // The key's value as text, for people: escaped, and cut when long.
  std::string Show(absl::string_view key) const;
  std::vector<std::string> keys() const;

  // For those that write the file anew. A power of two.
  int64_t alignment() const { return alignment_; }
  std::vector<std::string> KeysInFileOrder() const;
  // The value as the file holds it, its type tags and lengths included. InvalidArgument for a key
  // that is not there.
  absl::StatusOr<std::string> EncodedValue(absl::string_view key) const;

 private:
  friend class GgufHeaderReader;
  GgufFile() = default;
  absl::Status Bad(absl::string_view what) const;
  absl::StatusOr<const GgufValue*> Find(absl::string_view key) const;
  absl::Status WrongType(absl::string_view key, const GgufValue& value,
                         absl::string_view wanted) const;
  absl::string_view Text(uint64_t offset, uint64_t count) const {
    return {header_.data() + offset, count};
  }
  // The value of a fixed-size type at a checked offset of the header.
  template <typename T>
  T Load(uint64_t offset) const;
  std::optional<int64_t> LoadInt(GgufValueType type, uint64_t offset) const;
  std::string ShowScalar(GgufValueType type, uint64_t offset) const;

  std::string path_;
  UniqueFd fd_;
  bool powerinfer_ = false;
  FileIdentity identity_;
  int64_t alignment_ = 32;
  std::string header_digest_;
  std::vector<char> header_;  // its text; values are decoded when asked for
  absl::flat_hash_map<std::string, GgufValue> keys_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_idx_;
};

}  // namespace isotherm
