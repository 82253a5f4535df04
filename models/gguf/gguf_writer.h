#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"
#include "common/tensor/dtype.h"

namespace isotherm {

// Writes a GGUF v3 file: keys and tensor declarations first, then the tensors' bytes in the order
// declared, or in any order after Reserve(). The file appears under its name only when Finish() has
// synced it; until then a temporary file beside it is written, which the destructor removes.
// Single-threaded but for WriteAt().
class GgufWriter {
 public:
  // ResourceExhausted (exit code 71) when the folder cannot be written.
  static absl::StatusOr<std::unique_ptr<GgufWriter>> Create(const std::string& path,
                                                            bool powerinfer,
                                                            uint32_t alignment = 32);
  ~GgufWriter();

  void AddString(absl::string_view key, absl::string_view value);
  void AddUint32(absl::string_view key, uint32_t value);
  void AddUint64(absl::string_view key, uint64_t value);
  void AddFloat(absl::string_view key, float value);
  void AddBool(absl::string_view key, bool value);
  void AddStrings(absl::string_view key, std::span<const std::string> values);
  void AddFloats(absl::string_view key, std::span<const float> values);
  void AddInts(absl::string_view key, std::span<const int32_t> values);
  // `value` as GgufFile::EncodedValue gives it.
  void AddEncoded(absl::string_view key, absl::string_view value);

  // Shape is fastest first. InvalidArgument when the row is not a multiple of the type's block.
  absl::Status DeclareTensor(absl::string_view name, DType dtype, std::span<const int64_t> shape);
  // A tensor of any ggml type, `bytes` long.
  void DeclareEncoded(absl::string_view name, uint32_t ggml_type, std::span<const int64_t> shape,
                      int64_t bytes);
  // [count] of i32: type 18 in a PowerInfer file, whose numbering is of 2023, else 26. A count of 0
  // takes no bytes.
  void DeclareInts(absl::string_view name, int64_t count);
  // Bytes of the tensors, in the order declared and in pieces of any size.
  absl::Status Write(std::span<const std::byte> bytes);

  // Instead of Write(): writes the header and gives the file its full length, all zero.
  // ResourceExhausted (exit code 71), with both numbers, when the file system has not that much
  // free.
  absl::Status Reserve();
  // After Reserve(): `bytes` of the tensor declared `tensor_idx`-th, at `offset` bytes into it. Any
  // thread, any order; what is never written stays zero.
  absl::Status WriteAt(size_t tensor_idx, int64_t offset, std::span<const std::byte> bytes) const;
  // After Reserve(), for those who map the file: readable and writable, all of its bytes, and where
  // a tensor starts.
  int fd() const { return fd_.get(); }
  int64_t file_bytes() const { return file_bytes_; }
  int64_t TensorOffset(size_t tensor_idx) const {
    return data_start_ + tensors_[tensor_idx].offset;
  }

  // Pads, checks that every declared byte was written or the file reserved, syncs, renames. `check`
  // gets the complete file under its temporary name; unless it is OK nothing is renamed.
  absl::Status Finish(const std::function<absl::Status(const std::string& path)>& check = {});

 private:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    uint32_t ggml_type;
    int64_t offset, bytes;
  };
  GgufWriter() = default;
  void Key(absl::string_view key, uint32_t type);
  void Raw(const void* data, size_t bytes) { keys_.append(static_cast<const char*>(data), bytes); }
  void Text(std::string* out, absl::string_view text);
  void Declare(Tensor tensor);
  void SkipEmptyTensors();
  absl::Status WriteHeader();
  absl::Status SyncFolder() const;
  absl::Status WriteRaw(const void* data, size_t bytes);

  std::string path_, temporary_;
  UniqueFd fd_;
  bool powerinfer_ = false;
  uint32_t alignment_ = 32;
  uint64_t num_keys_ = 0;
  std::string keys_;
  std::vector<Tensor> tensors_;
  int64_t declared_bytes_ = 0;  // of the data section, padding between tensors included
  bool header_written_ = false;
  bool reserved_ = false;
  int64_t data_start_ = 0;     // from the start of the file, once the header is written
  int64_t file_bytes_ = 0;     // once reserved
  size_t current_ = 0;         // tensor being written
  int64_t current_bytes_ = 0;  // of it, done
};

}  // namespace isotherm
