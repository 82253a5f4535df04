#include "models/gguf/gguf_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_header_reader.h"
#include "models/gguf/printable.h"

namespace isotherm {

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->path_ = path;
  // Not blocking: a pipe's name must give an error at once.
  file->fd_.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file->fd_.valid()) {
    return WithExitCode(absl::NotFoundError(absl::StrCat("cannot open model file '", path, "': ",
                                                         std::strerror(errno), "; check the path")),
                        ExitCode::kBadData);
  }
  const absl::StatusOr<FileIdentity> identity = IdentityOf(file->fd_.get());
  if (!identity.ok()) return file->Bad("not a regular file");
  file->identity_ = *identity;
  ISOTHERM_RETURN_IF_ERROR(
      GgufHeaderReader(file.get(), static_cast<uint64_t>(identity->bytes)).Parse());
  return file;
}

absl::Status GgufFile::Bad(absl::string_view what) const {
  return WithExitCode(absl::DataLossError(absl::StrCat(path_, ": ", what)), ExitCode::kBadData);
}

absl::StatusOr<const GgufValue*> GgufFile::Find(absl::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return Bad(absl::StrCat("key ", key, " is missing"));
  return &it->second;
}

absl::Status GgufFile::WrongType(absl::string_view key, const GgufValue& value,
                                 absl::string_view wanted) const {
  const auto name = [](GgufValueType type) {
    return FindGgufValueType(static_cast<uint32_t>(type))->name;
  };
  return Bad(absl::StrCat(
      "key ", key, " has the wrong type, ",
      value.is_array() ? absl::StrCat("array of ", name(value.element)) : name(value.type), "; ",
      wanted, " is wanted"));
}

template <typename T>
T GgufFile::Load(uint64_t offset) const {
  T value;
  std::memcpy(&value, header_.data() + offset, sizeof(T));
  return value;
}

// Absent for types that are no integers and for values above 2^63 - 1.
std::optional<int64_t> GgufFile::LoadInt(GgufValueType type, uint64_t offset) const {
  switch (type) {
    case GgufValueType::kU8:
      return Load<uint8_t>(offset);
    case GgufValueType::kI8:
      return Load<int8_t>(offset);
    case GgufValueType::kU16:
      return Load<uint16_t>(offset);
    case GgufValueType::kI16:
      return Load<int16_t>(offset);
    case GgufValueType::kU32:
      return Load<uint32_t>(offset);
    case GgufValueType::kI32:
      return Load<int32_t>(offset);
    case GgufValueType::kI64:
      return Load<int64_t>(offset);
    case GgufValueType::kU64: {
      const auto value = Load<uint64_t>(offset);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return {};
      return static_cast<int64_t>(value);
    }
    default:
      return {};
  }
}

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  const std::optional<int64_t> number = LoadInt(value->type, value->offset);
  if (number.has_value() && *number >= 0) return *number;
  if (number.has_value() || value->type == GgufValueType::kU64) {
    return Bad(absl::StrCat("key ", key, " is ", Show(key), "; 0 to 2^63 - 1 is wanted"));
  }
  return WrongType(key, *value, "an integer");
}

absl::StatusOr<float> GgufFile::GetFloat(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (value->type == GgufValueType::kF32) return Load<float>(value->offset);
  if (value->type != GgufValueType::kF64) return WrongType(key, *value, "f32");
  const auto wide = Load<double>(value->offset);
  constexpr double kMax = std::numeric_limits<float>::max();
  // The cast itself is undefined for what a float cannot hold.
  if (wide > kMax) return std::numeric_limits<float>::infinity();
  if (wide < -kMax) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(wide);
}

absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (value->type != GgufValueType::kBool) return WrongType(key, *value, "bool");
  return Load<uint8_t>(value->offset) == 1;
}

absl::StatusOr<std::string> GgufFile::GetString(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (value->type != GgufValueType::kString) return WrongType(key, *value, "a string");
  return std::string(Text(value->offset, value->count));
}

absl::StatusOr<std::vector<std::string>> GgufFile::GetStrings(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (!value->is_array() || value->element != GgufValueType::kString) {
    return WrongType(key, *value, "an array of strings");
  }
  std::vector<std::string> out;
  out.reserve(value->count);
  uint64_t at = value->offset;
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto length = Load<uint64_t>(at);
    out.emplace_back(Text(at + 8, length));
    at += 8 + length;
  }
  return out;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloats(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (!value->is_array() || value->element != GgufValueType::kF32) {
    return WrongType(key, *value, "an array of f32");
  }
  std::vector<float> out(value->count);
  if (!out.empty()) std::memcpy(out.data(), header_.data() + value->offset, value->count * 4);
  return out;
}

absl::StatusOr<std::vector<int32_t>> GgufFile::GetInts(absl::string_view key) const {
  ISOTHERM_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  const uint64_t bytes = FindGgufValueType(static_cast<uint32_t>(value->element))->bytes;
  const bool integers =
      value->element != GgufValueType::kF32 && value->element != GgufValueType::kF64 &&
      value->element != GgufValueType::kBool && value->element != GgufValueType::kString;
  if (!value->is_array() || !integers) return WrongType(key, *value, "an array of i32");
  std::vector<int32_t> out;
  out.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const std::optional<int64_t> number = LoadInt(value->element, value->offset + i * bytes);
    if (!number.has_value() || *number < std::numeric_limits<int32_t>::min() ||
        *number > std::numeric_limits<int32_t>::max()) {
      return Bad(absl::StrCat("key ", key, " element ", i, " does not fit 32 bits"));
    }
    out.push_back(static_cast<int32_t>(*number));
  }
  return out;
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
      return Bad(absl::StrCat("cannot read tensor ", tensor.name, ": ", std::strerror(errno)));
    if (got == 0) {
      return Bad(absl::StrCat("the file became shorter while tensor ", tensor.name, " was read"));
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

std::vector<std::string> GgufFile::KeysInFileOrder() const {
  std::vector<std::pair<uint64_t, std::string>> order;
  for (const auto& [key, value] : keys_) order.emplace_back(value.offset, key);
  std::sort(order.begin(), order.end());
  std::vector<std::string> out;
  out.reserve(order.size());
  for (auto& [offset, key] : order) out.push_back(std::move(key));
  return out;
}

absl::StatusOr<std::string> GgufFile::EncodedValue(absl::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return absl::InvalidArgumentError(absl::StrCat("no key ", key));
  const GgufValue& value = it->second;
  // The text between the key and what follows the value: tag, an array's element tag and count, a
  // string's length.
  const uint64_t word = sizeof(uint64_t), tag = sizeof(uint32_t);
  uint64_t begin = value.offset - tag, end = value.offset;
  if (value.is_array()) {
    begin -= tag + word;
    if (value.element == GgufValueType::kString) {
      for (uint64_t i = 0; i < value.count; ++i) end += word + Load<uint64_t>(end);
    } else {
      end += value.count * FindGgufValueType(static_cast<uint32_t>(value.element))->bytes;
    }
  } else if (value.type == GgufValueType::kString) {
    begin -= word;
    end += value.count;
  } else {
    end += FindGgufValueType(static_cast<uint32_t>(value.type))->bytes;
  }
  return std::string(Text(begin, end - begin));
}

std::string GgufFile::ShowScalar(GgufValueType type, uint64_t offset) const {
  switch (type) {
    case GgufValueType::kF32:
      return absl::StrCat(Load<float>(offset));
    case GgufValueType::kF64:
      return absl::StrCat(Load<double>(offset));
    case GgufValueType::kBool:
      return Load<uint8_t>(offset) == 1 ? "true" : "false";
    case GgufValueType::kU64:
      return absl::StrCat(Load<uint64_t>(offset));
    default:
      return absl::StrCat(LoadInt(type, offset).value_or(0));
  }
}

std::string GgufFile::Show(absl::string_view key) const {
  const auto it = keys_.find(key);
  if (it == keys_.end()) return "";
  const GgufValue& value = it->second;
  constexpr size_t kMaxText = 200;
  if (value.type == GgufValueType::kString) {
    return Printable(Text(value.offset, value.count), kMaxText);
  }
  if (!value.is_array()) return ShowScalar(value.type, value.offset);
  constexpr uint64_t kShown = 4;
  std::string out = "[";
  uint64_t at = value.offset;
  for (uint64_t i = 0; i < std::min(value.count, kShown); ++i) {
    if (i > 0) out += ", ";
    if (value.element == GgufValueType::kString) {
      const auto length = Load<uint64_t>(at);
      out += Printable(Text(at + 8, length));
      at += 8 + length;
    } else {
      out += ShowScalar(value.element, at);
      at += FindGgufValueType(static_cast<uint32_t>(value.element))->bytes;
    }
  }
  absl::StrAppend(&out, value.count > kShown ? ", ...] (" : "] (", value.count, ")");
  return out;
}

}  // namespace isotherm
