#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/unique_fd.h"

namespace isotherm {

// A file in memory with a path: thousands of hostile files cost no disk.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& bytes) : fd_(::memfd_create("gguf", MFD_CLOEXEC)) {
    Set(bytes);
  }
  void Set(const std::string& bytes) {
    Truncate(0);
    const ssize_t put = ::pwrite(fd_.get(), bytes.data(), bytes.size(), 0);
    ISOTHERM_CHECK(put == static_cast<ssize_t>(bytes.size()));
  }
  void Truncate(size_t bytes) {
    ISOTHERM_CHECK(::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0);
  }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_.get()); }

 private:
  UniqueFd fd_;
};

// Assembles GGUF bytes by hand, so that tests can write what no writer would.
class GgufBytes {
 public:
  template <typename T>
  GgufBytes& Put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufBytes& Text(const std::string& text) {
    Put<uint64_t>(text.size());
    bytes_ += text;
    return *this;
  }
  GgufBytes& Raw(const std::string& bytes) {
    bytes_ += bytes;
    return *this;
  }
  GgufBytes& Header(uint64_t tensors, uint64_t keys, uint32_t version = 3,
                    const char* magic = "GGUF") {
    bytes_.append(magic, 4);
    return Put<uint32_t>(version).Put<uint64_t>(tensors).Put<uint64_t>(keys);
  }
  GgufBytes& U32(const std::string& key, uint32_t value) {
    return Text(key).Put<uint32_t>(4).Put<uint32_t>(value);
  }
  GgufBytes& F32(const std::string& key, float value) {
    return Text(key).Put<uint32_t>(6).Put<float>(value);
  }
  GgufBytes& Str(const std::string& key, const std::string& value) {
    return Text(key).Put<uint32_t>(8).Text(value);
  }
  GgufBytes& Tensor(const std::string& name, std::initializer_list<uint64_t> shape, uint32_t type,
                    uint64_t offset) {
    Text(name).Put<uint32_t>(static_cast<uint32_t>(shape.size()));
    for (const uint64_t size : shape) Put<uint64_t>(size);
    return Put<uint32_t>(type).Put<uint64_t>(offset);
  }
  // An array said to have `claimed` elements, followed by `bytes` zero bytes.
  GgufBytes& Array(const std::string& key, uint32_t type, uint64_t claimed, size_t bytes = 0) {
    return Text(key).Put<uint32_t>(9).Put<uint32_t>(type).Put<uint64_t>(claimed).Raw(
        std::string(bytes, '\0'));
  }
  GgufBytes& Pad(size_t alignment = 32) {
    while (bytes_.size() % alignment != 0) bytes_.push_back('\0');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace isotherm
