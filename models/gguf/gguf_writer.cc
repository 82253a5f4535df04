#include "models/gguf/gguf_writer.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

absl::Status Errno(absl::string_view what, const std::string& path) {
  return WithExitCode(absl::ResourceExhaustedError(
                          absl::StrCat("cannot ", what, " '", path, "': ", std::strerror(errno),
                                       "; check the folder and its free space")),
                      ExitCode::kShortage);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufWriter>> GgufWriter::Create(const std::string& path,
                                                               bool powerinfer,
                                                               uint32_t alignment) {
  std::unique_ptr<GgufWriter> writer(new GgufWriter());
  writer->path_ = path;
  writer->temporary_ = absl::StrCat(path, ".", ::getpid(), ".part");
  writer->powerinfer_ = powerinfer;
  writer->alignment_ = alignment;
  // Never through a link that someone else put there.
  ::unlink(writer->temporary_.c_str());
  writer->fd_.Reset(
      ::open(writer->temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!writer->fd_.valid()) return Errno("create", writer->temporary_);
  return writer;
}

GgufWriter::~GgufWriter() {
  if (fd_.valid()) ::unlink(temporary_.c_str());
}

void GgufWriter::Text(std::string* out, absl::string_view text) {
  const uint64_t length = text.size();
  out->append(reinterpret_cast<const char*>(&length), 8);
  out->append(text.data(), text.size());
}

void GgufWriter::Key(absl::string_view key, uint32_t type) {
  ISOTHERM_CHECK(!header_written_);
  Text(&keys_, key);
  Raw(&type, 4);
  ++num_keys_;
}
void GgufWriter::AddString(absl::string_view key, absl::string_view value) {
  Key(key, 8);
  Text(&keys_, value);
}
void GgufWriter::AddUint32(absl::string_view key, uint32_t value) {
  Key(key, 4);
  Raw(&value, 4);
}
void GgufWriter::AddUint64(absl::string_view key, uint64_t value) {
  Key(key, 10);
  Raw(&value, 8);
}
void GgufWriter::AddFloat(absl::string_view key, float value) {
  Key(key, 6);
  Raw(&value, 4);
}
void GgufWriter::AddBool(absl::string_view key, bool value) {
  Key(key, 7);
  const uint8_t byte = value ? 1 : 0;
  Raw(&byte, 1);
}
void GgufWriter::AddStrings(absl::string_view key, std::span<const std::string> values) {
  Key(key, 9);
  const uint32_t type = 8;
  const uint64_t count = values.size();
  Raw(&type, 4);
  Raw(&count, 8);
  for (const std::string& value : values) Text(&keys_, value);
}
void GgufWriter::AddFloats(absl::string_view key, std::span<const float> values) {
  Key(key, 9);
  const uint32_t type = 6;
  const uint64_t count = values.size();
  Raw(&type, 4);
  Raw(&count, 8);
  Raw(values.data(), values.size_bytes());
}
void GgufWriter::AddInts(absl::string_view key, std::span<const int32_t> values) {
  Key(key, 9);
  const uint32_t type = 5;
  const uint64_t count = values.size();
  Raw(&type, 4);
  Raw(&count, 8);
  Raw(values.data(), values.size_bytes());
}

void GgufWriter::AddEncoded(absl::string_view key, absl::string_view value) {
  ISOTHERM_CHECK(!header_written_);
  Text(&keys_, key);
  Raw(value.data(), value.size());
  ++num_keys_;
}

absl::Status GgufWriter::DeclareTensor(absl::string_view name, DType dtype,
                                       std::span<const int64_t> shape) {
  ISOTHERM_CHECK(!shape.empty());
  ISOTHERM_ASSIGN_OR_RETURN(int64_t bytes, RowBytes(dtype, shape[0]));
  for (size_t d = 1; d < shape.size(); ++d) {
    ISOTHERM_ASSIGN_OR_RETURN(bytes, CheckedMul<int64_t>(bytes, shape[d]));
  }
  DeclareEncoded(name, static_cast<uint32_t>(dtype), shape, bytes);
  return absl::OkStatus();
}

void GgufWriter::DeclareEncoded(absl::string_view name, uint32_t ggml_type,
                                std::span<const int64_t> shape, int64_t bytes) {
  ISOTHERM_CHECK(!header_written_ && !shape.empty() && shape.size() <= 4);
  Declare({.name = std::string(name),
           .shape = {shape.begin(), shape.end()},
           .ggml_type = ggml_type,
           .bytes = bytes});
}

void GgufWriter::DeclareInts(absl::string_view name, int64_t count) {
  ISOTHERM_CHECK(!header_written_ && count >= 0);
  Declare({.name = std::string(name),
           .shape = {count},
           .ggml_type = powerinfer_ ? 18u : 26u,
           .bytes = count * static_cast<int64_t>(sizeof(int32_t))});
}

void GgufWriter::Declare(Tensor tensor) {
  tensor.offset = RoundUp<int64_t>(declared_bytes_, alignment_);
  declared_bytes_ = tensor.offset + tensor.bytes;
  tensors_.push_back(std::move(tensor));
}

void GgufWriter::SkipEmptyTensors() {
  while (current_ < tensors_.size() && tensors_[current_].bytes == 0) ++current_;
}

absl::Status GgufWriter::WriteRaw(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(fd_.get(), at, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Errno("write", temporary_);
    at += put;
    bytes -= static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::WriteHeader() {
  std::string header = powerinfer_ ? "PWRI" : "GGUF";
  const uint32_t version = 3;
  const uint64_t num_tensors = tensors_.size();
  header.append(reinterpret_cast<const char*>(&version), 4);
  header.append(reinterpret_cast<const char*>(&num_tensors), 8);
  header.append(reinterpret_cast<const char*>(&num_keys_), 8);
  header += keys_;
  for (const Tensor& tensor : tensors_) {
    Text(&header, tensor.name);
    const auto num_dims = static_cast<uint32_t>(tensor.shape.size());
    header.append(reinterpret_cast<const char*>(&num_dims), 4);
    header.append(reinterpret_cast<const char*>(tensor.shape.data()), tensor.shape.size() * 8);
    header.append(reinterpret_cast<const char*>(&tensor.ggml_type), 4);
    header.append(reinterpret_cast<const char*>(&tensor.offset), 8);
  }
  header.resize(RoundUp<size_t>(header.size(), alignment_), '\0');
  header_written_ = true;
  data_start_ = static_cast<int64_t>(header.size());
  return WriteRaw(header.data(), header.size());
}

absl::Status GgufWriter::Reserve() {
  ISOTHERM_CHECK(!header_written_);
  ISOTHERM_RETURN_IF_ERROR(WriteHeader());
  const int64_t bytes = data_start_ + RoundUp<int64_t>(declared_bytes_, alignment_);
  struct statvfs free {};
  if (::fstatvfs(fd_.get(), &free) == 0 &&
      static_cast<uint64_t>(bytes) / free.f_frsize >= free.f_bavail) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat(
            "'", path_, "' needs ", bytes, " bytes, its file system has ",
            static_cast<uint64_t>(free.f_bavail) * free.f_frsize,
            " free; choose another folder, or make room (tmpfs: mount -o remount,size=...)")),
        ExitCode::kShortage);
  }
  if (::ftruncate(fd_.get(), bytes) != 0) return Errno("size", temporary_);
  file_bytes_ = bytes;
  reserved_ = true;
  return absl::OkStatus();
}

absl::Status GgufWriter::WriteAt(size_t tensor_idx, int64_t offset,
                                 std::span<const std::byte> bytes) const {
  ISOTHERM_CHECK(reserved_ && tensor_idx < tensors_.size());
  const Tensor& tensor = tensors_[tensor_idx];
  ISOTHERM_CHECK(offset >= 0 && offset <= tensor.bytes &&
                 static_cast<int64_t>(bytes.size()) <= tensor.bytes - offset);
  int64_t at = TensorOffset(tensor_idx) + offset;
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_.get(), bytes.data(), bytes.size(), at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Errno("write", temporary_);
    bytes = bytes.subspan(static_cast<size_t>(put));
    at += put;
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Write(std::span<const std::byte> bytes) {
  ISOTHERM_CHECK(!reserved_);
  if (!header_written_) ISOTHERM_RETURN_IF_ERROR(WriteHeader());
  while (!bytes.empty()) {
    SkipEmptyTensors();
    ISOTHERM_CHECK(current_ < tensors_.size());
    const Tensor& tensor = tensors_[current_];
    const size_t piece = std::min(bytes.size(), static_cast<size_t>(tensor.bytes - current_bytes_));
    ISOTHERM_RETURN_IF_ERROR(WriteRaw(bytes.data(), piece));
    bytes = bytes.subspan(piece);
    current_bytes_ += static_cast<int64_t>(piece);
    if (current_bytes_ == tensor.bytes) {
      const int64_t end = tensor.offset + tensor.bytes;
      const int64_t next = current_ + 1 < tensors_.size() ? tensors_[current_ + 1].offset
                                                          : RoundUp<int64_t>(end, alignment_);
      const std::string padding(static_cast<size_t>(next - end), '\0');
      ISOTHERM_RETURN_IF_ERROR(WriteRaw(padding.data(), padding.size()));
      ++current_;
      current_bytes_ = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Finish(const std::function<absl::Status(const std::string& path)>& check) {
  if (!header_written_) ISOTHERM_RETURN_IF_ERROR(WriteHeader());
  SkipEmptyTensors();
  ISOTHERM_CHECK(reserved_ || current_ == tensors_.size());
  if (::fsync(fd_.get()) != 0) return Errno("sync", temporary_);
  if (check) ISOTHERM_RETURN_IF_ERROR(check(temporary_));
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return Errno("rename to", path_);
  fd_.Reset();
  return SyncFolder();
}

// The new name must survive a crash as the bytes do.
absl::Status GgufWriter::SyncFolder() const {
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  const std::string name = folder.empty() ? "." : folder.string();
  const UniqueFd fd(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0) return Errno("sync the folder", name);
  return absl::OkStatus();
}

}  // namespace isotherm
