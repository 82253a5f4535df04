#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace isotherm {

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
  GgufBytes& Pad(size_t alignment = 32) {
    while (bytes_.size() % alignment != 0) bytes_.push_back('\0');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

  static std::string WriteTemp(const std::string& bytes, const std::string& name = "case.gguf") {
    const std::string path = testing::TempDir() + "/" +
                             testing::UnitTest::GetInstance()->current_test_info()->name() + name;
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return path;
  }

 private:
  std::string bytes_;
};

}  // namespace isotherm
