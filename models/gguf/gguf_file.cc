#include "models/gguf/gguf_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_limits.h"

namespace isotherm {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

absl::Status Bad(absl::string_view path, absl::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat(path, ": ", what)), ExitCode::kBadData);
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

}  // namespace

// Reads the header through one window that grows by pread; `at_` never passes the file's size, so
// every count is compared with the bytes left before anything is allocated for it.
class GgufHeaderReader {
 public:
  GgufHeaderReader(GgufFile* file, uint64_t file_bytes) : file_(file), file_bytes_(file_bytes) {}

  absl::Status Parse() {
    char magic[4];
    if (file_bytes_ < 24) {
      return Fail(
          absl::StrCat("not a GGUF file: ", file_bytes_, " bytes, a header has at least 24"));
    }
    ISOTHERM_RETURN_IF_ERROR(Take(magic, 4, "magic"));
    if (std::memcmp(magic, "PWRI", 4) == 0) {
      file_->powerinfer_ = true;
    } else if (std::memcmp(magic, "GGUF", 4) != 0) {
      return Fail("not a GGUF file: the magic is neither GGUF nor PWRI");
    }
    uint32_t version = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&version, 4, "version"));
    if (version != 0 && (version & 0xffffu) == 0) {
      return Fail("big-endian GGUF is not supported; convert the file to little-endian");
    }
    if (version != 2 && version != 3) {
      return Fail(absl::StrCat("GGUF version ", version, "; 2 and 3 are supported"));
    }
    uint64_t num_tensors = 0, num_keys = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&num_tensors, 8, "tensor count"));
    ISOTHERM_RETURN_IF_ERROR(Take(&num_keys, 8, "key count"));
    if (num_tensors > GgufLimits::kMaxTensors) {
      return Fail(
          absl::StrCat("tensor count ", num_tensors, "; at most ", GgufLimits::kMaxTensors));
    }
    if (num_keys > GgufLimits::kMaxKeys) {
      return Fail(absl::StrCat("key count ", num_keys, "; at most ", GgufLimits::kMaxKeys));
    }
    for (uint64_t i = 0; i < num_keys; ++i) ISOTHERM_RETURN_IF_ERROR(ParseKey());
    ISOTHERM_RETURN_IF_ERROR(CheckKeys());
    for (uint64_t i = 0; i < num_tensors; ++i) ISOTHERM_RETURN_IF_ERROR(ParseTensor());
    return CheckExtents();
  }

 private:
  absl::Status Fail(absl::string_view what) const { return Bad(file_->path_, what); }
  uint64_t left() const { return std::min(file_bytes_, GgufLimits::kMaxHeaderBytes) - at_; }

  // Makes window_ hold bytes at_ .. at_ + count.
  absl::Status Need(uint64_t count, absl::string_view field) {
    if (count > left()) {
      return Fail(absl::StrCat("the header ends inside ", field, ": ", count, " bytes wanted, ",
                               left(), " left (headers are at most ", GgufLimits::kMaxHeaderBytes,
                               " bytes)"));
    }
    if (at_ + count <= window_.size()) return absl::OkStatus();
    const uint64_t end = std::min(std::min(file_bytes_, GgufLimits::kMaxHeaderBytes),
                                  std::max(at_ + count, at_ + (uint64_t{1} << 20)));
    uint64_t have = window_.size();
    window_.resize(end);
    while (have < end) {
      const ssize_t got =
          ::pread(file_->fd_.get(), window_.data() + have, end - have, static_cast<off_t>(have));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return Fail(absl::StrCat("cannot read ", field, ": the file became shorter"));
      have += static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
  }

  absl::Status Take(void* out, uint64_t count, absl::string_view field) {
    ISOTHERM_RETURN_IF_ERROR(Need(count, field));
    std::memcpy(out, window_.data() + at_, count);
    at_ += count;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> TakeString(uint64_t limit, absl::string_view field) {
    uint64_t length = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&length, 8, field));
    if (length > limit)
      return Fail(absl::StrCat(field, " has ", length, " bytes; at most ", limit));
    ISOTHERM_RETURN_IF_ERROR(Need(length, field));
    std::string text(window_.data() + at_, length);
    at_ += length;
    return text;
  }

  template <typename T>
  absl::StatusOr<T> TakeScalar(absl::string_view field) {
    T value;
    ISOTHERM_RETURN_IF_ERROR(Take(&value, sizeof(T), field));
    return value;
  }

  absl::StatusOr<GgufFile::Value> TakeValue(uint32_t type, absl::string_view key) {
    switch (type) {
      case 0: {
        ISOTHERM_ASSIGN_OR_RETURN(const uint8_t v, TakeScalar<uint8_t>(key));
        return GgufFile::Value(uint64_t{v});
      }
      case 1: {
        ISOTHERM_ASSIGN_OR_RETURN(const int8_t v, TakeScalar<int8_t>(key));
        return GgufFile::Value(int64_t{v});
      }
      case 2: {
        ISOTHERM_ASSIGN_OR_RETURN(const uint16_t v, TakeScalar<uint16_t>(key));
        return GgufFile::Value(uint64_t{v});
      }
      case 3: {
        ISOTHERM_ASSIGN_OR_RETURN(const int16_t v, TakeScalar<int16_t>(key));
        return GgufFile::Value(int64_t{v});
      }
      case 4: {
        ISOTHERM_ASSIGN_OR_RETURN(const uint32_t v, TakeScalar<uint32_t>(key));
        return GgufFile::Value(uint64_t{v});
      }
      case 5: {
        ISOTHERM_ASSIGN_OR_RETURN(const int32_t v, TakeScalar<int32_t>(key));
        return GgufFile::Value(int64_t{v});
      }
      case 6: {
        ISOTHERM_ASSIGN_OR_RETURN(const float v, TakeScalar<float>(key));
        return GgufFile::Value(double{v});
      }
      case 7: {
        ISOTHERM_ASSIGN_OR_RETURN(const uint8_t v, TakeScalar<uint8_t>(key));
        if (v > 1) return Fail(absl::StrCat("key ", key, ": bool is ", v, "; 0 or 1 wanted"));
        return GgufFile::Value(v == 1);
      }
      case 8: {
        ISOTHERM_ASSIGN_OR_RETURN(std::string v, TakeString(GgufLimits::kMaxStringBytes, key));
        return GgufFile::Value(std::move(v));
      }
      case 10: {
        ISOTHERM_ASSIGN_OR_RETURN(const uint64_t v, TakeScalar<uint64_t>(key));
        return GgufFile::Value(v);
      }
      case 11: {
        ISOTHERM_ASSIGN_OR_RETURN(const int64_t v, TakeScalar<int64_t>(key));
        return GgufFile::Value(v);
      }
      case 12: {
        ISOTHERM_ASSIGN_OR_RETURN(const double v, TakeScalar<double>(key));
        return GgufFile::Value(v);
      }
      default:
        return Fail(
            absl::StrCat("key ", key, ": value type ", type, " is unknown; 0 to 12 are defined"));
    }
  }

  absl::StatusOr<GgufFile::Value> TakeArray(absl::string_view key) {
    uint32_t type = 0;
    uint64_t count = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&type, 4, key));
    ISOTHERM_RETURN_IF_ERROR(Take(&count, 8, key));
    static constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
    if (type >= std::size(kSizes) || kSizes[type] == 0) {
      return Fail(absl::StrCat("key ", key, ": arrays of type ", type, " are not allowed"));
    }
    if (count > GgufLimits::kMaxArrayElements) {
      return Fail(absl::StrCat("key ", key, ": array of ", count, " elements; at most ",
                               GgufLimits::kMaxArrayElements));
    }
    if (count > left() / kSizes[type]) {  // a string needs at least its length's 8 bytes
      return Fail(absl::StrCat("key ", key, ": array of ", count, " elements, only ", left(),
                               " bytes left"));
    }
    if (type == 8) {
      std::vector<std::string> out;
      out.reserve(count);
      for (uint64_t i = 0; i < count; ++i) {
        ISOTHERM_ASSIGN_OR_RETURN(std::string text, TakeString(GgufLimits::kMaxStringBytes, key));
        out.push_back(std::move(text));
      }
      return GgufFile::Value(std::move(out));
    }
    if (type == 6) {
      std::vector<float> out(count);
      ISOTHERM_RETURN_IF_ERROR(Take(out.data(), count * 4, key));
      return GgufFile::Value(std::move(out));
    }
    if (type == 5 || type == 4) {
      std::vector<int32_t> out(count);
      ISOTHERM_RETURN_IF_ERROR(Take(out.data(), count * 4, key));
      return GgufFile::Value(std::move(out));
    }
    std::vector<int64_t> out;
    out.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      ISOTHERM_ASSIGN_OR_RETURN(const GgufFile::Value value, TakeValue(type, key));
      out.push_back(std::visit(
          [](const auto& v) -> int64_t {
            using V = std::decay_t<decltype(v)>;
            if constexpr (std::is_arithmetic_v<V>) return static_cast<int64_t>(v);
            return 0;
          },
          value));
    }
    return GgufFile::Value(std::move(out));
  }

  absl::Status ParseKey() {
    ISOTHERM_ASSIGN_OR_RETURN(std::string key, TakeString(GgufLimits::kMaxKeyBytes, "a key"));
    if (key.empty() || !IsAscii(key)) return Fail("a key is empty or not ASCII");
    uint32_t type = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&type, 4, key));
    absl::StatusOr<GgufFile::Value> value = type == 9 ? TakeArray(key) : TakeValue(type, key);
    if (!value.ok()) return value.status();
    if (!file_->keys_.emplace(key, *std::move(value)).second) {
      return Fail(absl::StrCat("key ", key, " appears twice"));
    }
    return absl::OkStatus();
  }

  absl::Status CheckKeys() {
    if (file_->Has("general.alignment")) {
      const absl::StatusOr<int64_t> value = file_->GetInt("general.alignment");
      if (!value.ok()) return value.status();
      alignment_ = static_cast<uint64_t>(*value);
      if (!std::has_single_bit(alignment_) || alignment_ < GgufLimits::kMinAlignment ||
          alignment_ > GgufLimits::kMaxAlignment) {
        return Fail(absl::StrCat("general.alignment is ", alignment_, "; a power of two from ",
                                 GgufLimits::kMinAlignment, " to ", GgufLimits::kMaxAlignment,
                                 " is wanted"));
      }
    }
    if (file_->Has("general.quantization_version")) {
      ISOTHERM_ASSIGN_OR_RETURN(const int64_t version,
                                file_->GetInt("general.quantization_version"));
      if (version != 2)
        return Fail(absl::StrCat("general.quantization_version is ", version, "; 2 is supported"));
    }
    if (file_->Has("split.count")) {
      ISOTHERM_ASSIGN_OR_RETURN(const int64_t count, file_->GetInt("split.count"));
      if (count > 1) {
        return Fail(absl::StrCat("one of ", count, " shards; join them into one file first"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensor() {
    GgufTensor tensor;
    ISOTHERM_ASSIGN_OR_RETURN(tensor.name,
                              TakeString(GgufLimits::kMaxTensorNameBytes, "a tensor name"));
    if (tensor.name.empty() || !IsAscii(tensor.name))
      return Fail("a tensor name is empty or not ASCII");
    uint32_t num_dims = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&num_dims, 4, tensor.name));
    if (num_dims < 1 || num_dims > 4) {
      return Fail(
          absl::StrCat("tensor ", tensor.name, " has ", num_dims, " dimensions; 1 to 4 wanted"));
    }
    tensor.num_dims = static_cast<int>(num_dims);
    for (uint32_t d = 0; d < num_dims; ++d) {
      uint64_t size = 0;
      ISOTHERM_RETURN_IF_ERROR(Take(&size, 8, tensor.name));
      if (size < 1 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Fail(absl::StrCat("tensor ", tensor.name, " dimension ", d, " is ", size));
      }
      tensor.shape[d] = static_cast<int64_t>(size);
    }
    ISOTHERM_RETURN_IF_ERROR(Take(&tensor.ggml_type, 4, tensor.name));
    uint64_t offset = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&offset, 8, tensor.name));
    if (file_->powerinfer_ && tensor.ggml_type >= 16 && tensor.ggml_type <= 23) {
      return Fail(absl::StrCat("tensor ", tensor.name, " has type ", tensor.ggml_type,
                               ", which a PowerInfer model file does not use"));
    }
    const GgmlTypeInfo* type = FindGgmlType(tensor.ggml_type);
    if (type == nullptr) {
      return Fail(
          absl::StrCat("tensor ", tensor.name, " has type ", tensor.ggml_type,
                       ", which is not supported; requantise the model to F16, Q8_0 or Q4_0"));
    }
    if (tensor.shape[0] % type->block_elements != 0) {
      return Fail(absl::StrCat("tensor ", tensor.name, " has rows of ", tensor.shape[0],
                               " elements; ", type->name, " needs a multiple of ",
                               type->block_elements));
    }
    absl::StatusOr<int64_t> bytes =
        CheckedMul<int64_t>(tensor.shape[0] / type->block_elements, type->block_bytes);
    for (int d = 1; d < 4 && bytes.ok(); ++d)
      bytes = CheckedMul<int64_t>(*bytes, tensor.shape[static_cast<size_t>(d)]);
    if (!bytes.ok()) return Fail(absl::StrCat("tensor ", tensor.name, ": size overflows"));
    tensor.bytes = *bytes;
    if (offset % alignment_ != 0) {
      return Fail(absl::StrCat("tensor ", tensor.name, " offset ", offset, " is not a multiple of ",
                               alignment_));
    }
    if (offset > file_bytes_) {
      return Fail(absl::StrCat("tensor ", tensor.name, " offset ", offset, " lies past the file's ",
                               file_bytes_, " bytes"));
    }
    tensor.offset = static_cast<int64_t>(offset);  // data_start is added in CheckExtents
    if (!file_->tensor_idx_.emplace(tensor.name, file_->tensors_.size()).second) {
      return Fail(absl::StrCat("tensor ", tensor.name, " appears twice"));
    }
    file_->tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status CheckExtents() {
    uint64_t digest = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < at_; ++i) {
      digest = (digest ^ static_cast<unsigned char>(window_[i])) * 0x100000001b3u;
    }
    file_->header_digest_ = absl::StrFormat("%016x", digest ^ file_bytes_);
    const auto data_start = static_cast<int64_t>(RoundUp<uint64_t>(at_, alignment_));
    const auto size = static_cast<int64_t>(file_bytes_);
    std::vector<const GgufTensor*> order;
    for (GgufTensor& tensor : file_->tensors_) {
      tensor.offset += data_start;
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) {
        return Fail(absl::StrCat("tensor ", tensor.name, " needs bytes ", tensor.offset, " to ",
                                 tensor.offset, " + ", tensor.bytes, ", the file has ", size,
                                 "; it is incomplete: get it again"));
      }
      order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
        return Fail(
            absl::StrCat("tensors ", order[i - 1]->name, " and ", order[i]->name, " overlap"));
      }
    }
    return absl::OkStatus();
  }

  GgufFile* file_;
  uint64_t file_bytes_;
  std::string window_;
  uint64_t at_ = 0;
  uint64_t alignment_ = GgufLimits::kDefaultAlignment;
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->path_ = path;
  file->fd_.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file->fd_.valid()) {
    return WithExitCode(absl::NotFoundError(absl::StrCat("cannot open model file '", path, "': ",
                                                         std::strerror(errno), "; check the path")),
                        ExitCode::kBadData);
  }
  struct stat info {};
  if (::fstat(file->fd_.get(), &info) != 0 || !S_ISREG(info.st_mode))
    return Bad(path, "not a regular file");
  file->file_bytes_ = info.st_size;
  ISOTHERM_RETURN_IF_ERROR(
      GgufHeaderReader(file.get(), static_cast<uint64_t>(info.st_size)).Parse());
  return file;
}

template <typename T>
absl::StatusOr<T> GgufFile::Get(absl::string_view key, absl::string_view wanted) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return Bad(path_, absl::StrCat("key ", key, " is missing"));
  if (const T* value = std::get_if<T>(&it->second); value != nullptr) return *value;
  return Bad(path_, absl::StrCat("key ", key, " has the wrong type; ", wanted, " is wanted"));
}

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  if (const auto it = keys_.find(key); it != keys_.end()) {
    if (const uint64_t* value = std::get_if<uint64_t>(&it->second);
        value != nullptr && *value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return static_cast<int64_t>(*value);
    }
    if (const int64_t* value = std::get_if<int64_t>(&it->second); value != nullptr && *value >= 0)
      return *value;
  }
  return Get<int64_t>(key, "a non-negative integer").ok() || !Has(key)
             ? Bad(path_, absl::StrCat("key ", key,
                                       Has(key) ? " is negative or too large" : " is missing"))
             : Bad(path_, absl::StrCat("key ", key,
                                       " has the wrong type; a non-negative integer is wanted"));
}
absl::StatusOr<float> GgufFile::GetFloat(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const double value, Get<double>(key, "a float"));
  return static_cast<float>(value);
}
absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  return Get<bool>(key, "a bool");
}
absl::StatusOr<std::string> GgufFile::GetString(absl::string_view key) const {
  return Get<std::string>(key, "a string");
}
absl::StatusOr<std::vector<std::string>> GgufFile::GetStrings(absl::string_view key) const {
  return Get<std::vector<std::string>>(key, "an array of strings");
}
absl::StatusOr<std::vector<float>> GgufFile::GetFloats(absl::string_view key) const {
  return Get<std::vector<float>>(key, "an array of f32");
}
absl::StatusOr<std::vector<int32_t>> GgufFile::GetInts(absl::string_view key) const {
  return Get<std::vector<int32_t>>(key, "an array of i32");
}

const GgufTensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto it = tensor_idx_.find(name);
  return it == tensor_idx_.end() ? nullptr : &tensors_[it->second];
}

absl::Status GgufFile::Read(const GgufTensor& tensor, int64_t byte_offset,
                            std::span<std::byte> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (byte_offset < 0 || byte_offset > tensor.bytes || count > tensor.bytes - byte_offset) {
    return absl::InvalidArgumentError(absl::StrCat("read of ", count, " bytes at ", byte_offset,
                                                   " of tensor ", tensor.name, ", which has ",
                                                   tensor.bytes));
  }
  int64_t done = 0;
  while (done < count) {
    const ssize_t got = ::pread(fd_.get(), out.data() + done, static_cast<size_t>(count - done),
                                static_cast<off_t>(tensor.offset + byte_offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return Bad(path_,
                 absl::StrCat("cannot read tensor ", tensor.name, ": ", std::strerror(errno)));
    if (got == 0) {
      return Bad(path_,
                 absl::StrCat("the file became shorter while tensor ", tensor.name, " was read"));
    }
    done += got;
  }
  return absl::OkStatus();
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : keys_) out.push_back(key);
  std::sort(out.begin(), out.end());
  return out;
}

std::string GgufFile::Show(absl::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return "";
  return std::visit(
      [](const auto& value) -> std::string {
        using V = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<V, std::string>) {
          return value.size() <= 200
                     ? value
                     : absl::StrCat(value.substr(0, 200), "... (", value.size(), " bytes)");
        } else if constexpr (std::is_same_v<V, bool>) {
          return value ? "true" : "false";
        } else if constexpr (std::is_arithmetic_v<V>) {
          return absl::StrCat(value);
        } else {
          const size_t shown = std::min<size_t>(value.size(), 4);
          return absl::StrCat(
              "[", absl::StrJoin(value.begin(), value.begin() + static_cast<int64_t>(shown), ", "),
              value.size() > shown ? ", ..." : "", "] (", value.size(), ")");
        }
      },
      it->second);
}

}  // namespace isotherm
