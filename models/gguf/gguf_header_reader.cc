#include "models/gguf/gguf_header_reader.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/printable.h"

namespace isotherm {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr uint64_t kFixedBytes = 24;  // magic, version, two counts
constexpr uint64_t kReadAhead = uint64_t{1} << 20;
constexpr uint32_t kOldI32 = 18;  // in PowerInfer's numbering of 2023
constexpr uint32_t kI32 = 26;

bool IsName(absl::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

}  // namespace

GgufHeaderReader::GgufHeaderReader(GgufFile* file, uint64_t file_bytes)
    : file_(file),
      file_bytes_(file_bytes),
      limit_(std::min(file_bytes, GgufLimits::kMaxHeaderBytes)) {}

absl::Status GgufHeaderReader::Fail(absl::string_view what) const {
  return WithExitCode(absl::DataLossError(absl::StrCat(file_->path_, ": ", what)),
                      ExitCode::kBadData);
}

absl::Status GgufHeaderReader::Parse() {
  uint64_t num_tensors = 0, num_keys = 0;
  ISOTHERM_RETURN_IF_ERROR(ParseFixed(&num_tensors, &num_keys));
  for (uint64_t i = 0; i < num_keys; ++i) ISOTHERM_RETURN_IF_ERROR(ParseKey());
  ISOTHERM_RETURN_IF_ERROR(CheckKeys());
  for (uint64_t i = 0; i < num_tensors; ++i) ISOTHERM_RETURN_IF_ERROR(ParseTensor());
  return CheckExtents();
}

absl::Status GgufHeaderReader::ParseFixed(uint64_t* num_tensors, uint64_t* num_keys) {
  if (file_bytes_ < kFixedBytes) {
    return Fail(absl::StrCat("not a GGUF file: ", file_bytes_, " bytes, a header has at least ",
                             kFixedBytes));
  }
  char magic[4];
  ISOTHERM_RETURN_IF_ERROR(Take(magic, 4, "magic"));
  if (std::memcmp(magic, "PWRI", 4) == 0) {
    file_->powerinfer_ = true;
  } else if (std::memcmp(magic, "GGUF", 4) != 0) {
    return Fail(absl::StrCat("not a GGUF file: the magic is '",
                             Printable(absl::string_view(magic, 4)), "'; GGUF or PWRI is wanted"));
  }
  uint32_t version = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&version, 4, "version"));
  if (version != 0 && (version & 0xffffu) == 0) {
    return Fail("version is byte-swapped: the file is big-endian; convert it to little-endian");
  }
  if (version != 2 && version != 3) {
    return Fail(absl::StrCat("GGUF version ", version, "; 2 and 3 are supported"));
  }
  ISOTHERM_RETURN_IF_ERROR(Take(num_tensors, 8, "tensor count"));
  ISOTHERM_RETURN_IF_ERROR(Take(num_keys, 8, "key count"));
  if (*num_tensors > GgufLimits::kMaxTensors) {
    return Fail(absl::StrCat("tensor count ", *num_tensors, "; at most ", GgufLimits::kMaxTensors));
  }
  if (*num_keys > GgufLimits::kMaxKeys) {
    return Fail(absl::StrCat("key count ", *num_keys, "; at most ", GgufLimits::kMaxKeys));
  }
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::Need(uint64_t count, absl::string_view field) {
  if (count > left()) {
    return Fail(absl::StrCat(
        "the header ends inside ", field, ": ", count, " bytes wanted, ", left(), " left",
        limit_ == file_bytes_ ? "; the file is incomplete: get it again"
                              : absl::StrCat(" of the ", limit_, " a header may have")));
  }
  std::vector<char>& text = file_->header_;
  if (at_ + count <= text.size()) return absl::OkStatus();
  const uint64_t end = std::min(limit_, at_ + std::max(count, kReadAhead));
  // Doubled, but never beyond what the header can have: vector::reserve() is exact.
  if (end > text.capacity()) text.reserve(std::min(limit_, std::max(end, 2 * text.size())));
  uint64_t have = text.size();
  text.resize(end);
  while (have < end) {
    const ssize_t got =
        ::pread(file_->fd_.get(), text.data() + have, end - have, static_cast<off_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Fail(absl::StrCat("cannot read ", field, ": ", std::strerror(errno)));
    if (got == 0) return Fail(absl::StrCat("the file became shorter while ", field, " was read"));
    have += static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::Take(void* out, uint64_t count, absl::string_view field) {
  ISOTHERM_RETURN_IF_ERROR(Need(count, field));
  std::memcpy(out, file_->header_.data() + at_, count);
  at_ += count;
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::SkipString(uint64_t max_bytes, absl::string_view field,
                                          GgufValue* value) {
  uint64_t length = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&length, 8, field));
  if (length > max_bytes) {
    return Fail(absl::StrCat(field, " has ", length, " bytes; at most ", max_bytes));
  }
  ISOTHERM_RETURN_IF_ERROR(Need(length, field));
  value->offset = at_;
  value->count = length;
  at_ += length;
  return absl::OkStatus();
}

absl::StatusOr<std::string> GgufHeaderReader::TakeName(uint64_t max_bytes,
                                                       absl::string_view field) {
  GgufValue span;
  ISOTHERM_RETURN_IF_ERROR(SkipString(max_bytes, field, &span));
  std::string name(file_->Text(span.offset, span.count));
  if (!IsName(name)) {
    return Fail(absl::StrCat(field, " is '", Printable(name),
                             "'; printable ASCII of at least one letter is wanted"));
  }
  return name;
}

absl::Status GgufHeaderReader::ParseScalar(uint32_t tag, absl::string_view key, GgufValue* value) {
  if (value->type == GgufValueType::kString) {
    return SkipString(GgufLimits::kMaxStringBytes, key, value);
  }
  const uint64_t bytes = FindGgufValueType(tag)->bytes;
  ISOTHERM_RETURN_IF_ERROR(Need(bytes, key));
  value->offset = at_;
  at_ += bytes;
  const auto first = static_cast<unsigned char>(file_->header_[value->offset]);
  if (value->type == GgufValueType::kBool && first > 1) {
    return Fail(absl::StrCat("key ", key, " is a bool of value ", first, "; 0 or 1 is wanted"));
  }
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::ParseArray(absl::string_view key, GgufValue* value) {
  uint32_t tag = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&tag, 4, key));
  ISOTHERM_RETURN_IF_ERROR(Take(&value->count, 8, key));
  const GgufValueTypeInfo* type = FindGgufValueType(tag);
  if (type == nullptr || type->bytes == 0) {
    return Fail(
        absl::StrCat("key ", key, " is an array of type ", tag,
                     type == nullptr ? ", which is unknown" : "; nested arrays are refused"));
  }
  if (value->count > GgufLimits::kMaxArrayElements) {
    return Fail(absl::StrCat("key ", key, " is an array of ", value->count, " elements; at most ",
                             GgufLimits::kMaxArrayElements));
  }
  if (value->count > left() / type->bytes) {  // a string needs its length word at least
    return Fail(absl::StrCat("key ", key, " is an array of ", value->count,
                             " elements of at least ", type->bytes, " bytes; only ", left(),
                             " bytes are left"));
  }
  value->element = static_cast<GgufValueType>(tag);
  if (value->element == GgufValueType::kString) {
    value->offset = at_;
    GgufValue ignored;
    for (uint64_t i = 0; i < value->count; ++i) {
      ISOTHERM_RETURN_IF_ERROR(SkipString(GgufLimits::kMaxStringBytes, key, &ignored));
    }
    return absl::OkStatus();
  }
  const uint64_t bytes = value->count * type->bytes;
  ISOTHERM_RETURN_IF_ERROR(Need(bytes, key));
  value->offset = at_;
  at_ += bytes;
  if (value->element == GgufValueType::kBool) {
    const char* begin = file_->header_.data() + value->offset;
    const bool valid = std::all_of(begin, begin + bytes, [](char c) { return c == 0 || c == 1; });
    if (!valid) return Fail(absl::StrCat("key ", key, " holds a bool that is neither 0 nor 1"));
  }
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::ParseKey() {
  ISOTHERM_ASSIGN_OR_RETURN(std::string key, TakeName(GgufLimits::kMaxKeyBytes, "a key"));
  uint32_t tag = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&tag, 4, key));
  if (FindGgufValueType(tag) == nullptr) {
    return Fail(absl::StrCat("key ", key, " has value type ", tag, "; 0 to 12 are defined"));
  }
  GgufValue value{.type = static_cast<GgufValueType>(tag)};
  ISOTHERM_RETURN_IF_ERROR(value.is_array() ? ParseArray(key, &value)
                                            : ParseScalar(tag, key, &value));
  const auto [at, inserted] = file_->keys_.emplace(std::move(key), value);
  if (!inserted) return Fail(absl::StrCat("key ", at->first, " appears twice"));
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::CheckKeys() {
  if (file_->Has("general.alignment")) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, file_->GetInt("general.alignment"));
    alignment_ = static_cast<uint64_t>(value);
    if (!std::has_single_bit(alignment_) || alignment_ < GgufLimits::kMinAlignment ||
        alignment_ > GgufLimits::kMaxAlignment) {
      return Fail(absl::StrCat("general.alignment is ", alignment_, "; a power of two from ",
                               GgufLimits::kMinAlignment, " to ", GgufLimits::kMaxAlignment,
                               " is wanted"));
    }
  }
  if (file_->Has("general.quantization_version")) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t version, file_->GetInt("general.quantization_version"));
    if (version != 2) {
      return Fail(absl::StrCat("general.quantization_version is ", version, "; 2 is supported"));
    }
  }
  if (file_->Has("split.count")) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t count, file_->GetInt("split.count"));
    if (count > 1) {
      return Fail(absl::StrCat("split.count is ", count,
                               ": one of several shards; join them into one file first"));
    }
  }
  gpu_split_ = file_->powerinfer_ &&
               file_->GetString("general.architecture").value_or("") == "generic.gpu_index";
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::ParseShape(GgufTensor* tensor) {
  uint32_t num_dims = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&num_dims, 4, tensor->name));
  if (num_dims < 1 || num_dims > tensor->shape.size()) {
    return Fail(
        absl::StrCat("tensor ", tensor->name, " has ", num_dims, " dimensions; 1 to 4 wanted"));
  }
  tensor->num_dims = static_cast<int>(num_dims);
  const bool may_be_empty = gpu_split_ && absl::EndsWith(tensor->name, ".gpu_bucket");
  for (uint32_t d = 0; d < num_dims; ++d) {
    uint64_t size = 0;
    ISOTHERM_RETURN_IF_ERROR(Take(&size, 8, tensor->name));
    if ((size == 0 && !may_be_empty) ||
        size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat("tensor ", tensor->name, " dimension ", d, " is ", size,
                               "; 1 to 2^63 - 1 wanted"));
    }
    tensor->shape[d] = static_cast<int64_t>(size);
  }
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::SizeTensor(GgufTensor* tensor) const {
  if (gpu_split_ && tensor->ggml_type == kOldI32) tensor->ggml_type = kI32;
  if (file_->powerinfer_ && tensor->ggml_type >= 16 && tensor->ggml_type <= 23) {
    return Fail(absl::StrCat("tensor ", tensor->name, " has type ", tensor->ggml_type,
                             ", which no PowerInfer model uses; requantise it to F16, Q8_0 or "
                             "Q4_0"));
  }
  const GgmlTypeInfo* type = FindGgmlType(tensor->ggml_type);
  if (type == nullptr) {
    return Fail(absl::StrCat("tensor ", tensor->name, " has type ", tensor->ggml_type,
                             ", which is not supported; requantise the model to F16, Q8_0 or "
                             "Q4_0"));
  }
  if (tensor->shape[0] % type->block_elements != 0) {
    return Fail(absl::StrCat("tensor ", tensor->name, " has rows of ", tensor->shape[0],
                             " elements; ", type->name, " needs a multiple of ",
                             type->block_elements));
  }
  // Elements are bounded too, so that rows() * columns() cannot wrap for anyone.
  absl::StatusOr<int64_t> bytes =
      CheckedMul<int64_t>(tensor->shape[0] / type->block_elements, type->block_bytes);
  absl::StatusOr<int64_t> elements = tensor->shape[0];
  for (size_t d = 1; d < tensor->shape.size() && bytes.ok() && elements.ok(); ++d) {
    bytes = CheckedMul<int64_t>(*bytes, tensor->shape[d]);
    elements = CheckedMul<int64_t>(*elements, tensor->shape[d]);
  }
  if (!bytes.ok() || !elements.ok()) {
    return Fail(absl::StrCat("tensor ", tensor->name,
                             " is too large: the product of its "
                             "dimensions does not fit 63 bits"));
  }
  tensor->bytes = *bytes;
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::ParseTensor() {
  GgufTensor tensor;
  ISOTHERM_ASSIGN_OR_RETURN(tensor.name,
                            TakeName(GgufLimits::kMaxTensorNameBytes, "a tensor name"));
  ISOTHERM_RETURN_IF_ERROR(ParseShape(&tensor));
  ISOTHERM_RETURN_IF_ERROR(Take(&tensor.ggml_type, 4, tensor.name));
  uint64_t offset = 0;
  ISOTHERM_RETURN_IF_ERROR(Take(&offset, 8, tensor.name));
  ISOTHERM_RETURN_IF_ERROR(SizeTensor(&tensor));
  if (offset % alignment_ != 0) {
    return Fail(absl::StrCat("tensor ", tensor.name, " offset ", offset, " is not a multiple of ",
                             alignment_));
  }
  if (offset > file_bytes_) {
    return Fail(absl::StrCat("tensor ", tensor.name, " offset ", offset, " lies past the file's ",
                             file_bytes_, " bytes"));
  }
  tensor.offset = static_cast<int64_t>(offset);  // CheckExtents adds where the data starts
  if (!file_->tensor_idx_.emplace(tensor.name, file_->tensors_.size()).second) {
    return Fail(absl::StrCat("tensor ", tensor.name, " appears twice"));
  }
  file_->tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status GgufHeaderReader::CheckExtents() {
  file_->alignment_ = static_cast<int64_t>(alignment_);
  file_->header_.resize(at_);
  file_->header_.shrink_to_fit();
  uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : file_->header_) {
    digest = (digest ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  file_->header_digest_ = absl::StrFormat("%016x", digest ^ file_bytes_);
  const auto data_start = static_cast<int64_t>(RoundUp<uint64_t>(at_, alignment_));
  const auto size = static_cast<int64_t>(file_bytes_);
  std::vector<const GgufTensor*> order;
  order.reserve(file_->tensors_.size());
  for (GgufTensor& tensor : file_->tensors_) {
    tensor.offset += data_start;
    if (tensor.offset > size || tensor.bytes > size - tensor.offset) {
      return Fail(absl::StrCat("tensor ", tensor.name, " has ", tensor.bytes, " bytes at ",
                               tensor.offset, ", the file ends at ", size,
                               "; it is incomplete: get it again"));
    }
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
      return Fail(
          absl::StrCat("tensors ", order[i - 1]->name, " and ", order[i]->name, " overlap"));
    }
  }
  return absl::OkStatus();
}

}  // namespace isotherm
