#pragma once

#include <cstdint>

namespace isotherm {

// What a GGUF header may ask for. All far above any real file; they bound work and memory on
// hostile ones.
struct GgufLimits {
  static constexpr uint64_t kMaxKeys = 65'536;
  static constexpr uint64_t kMaxTensors = 65'536;
  static constexpr uint64_t kMaxHeaderBytes = uint64_t{256} << 20;
  static constexpr uint64_t kMaxKeyBytes = 1'024;
  static constexpr uint64_t kMaxTensorNameBytes = 63;
  static constexpr uint64_t kMaxStringBytes = uint64_t{16} << 20;
  static constexpr uint64_t kMaxArrayElements = uint64_t{16} << 20;
  static constexpr uint64_t kMinAlignment = 8;
  static constexpr uint64_t kMaxAlignment = 65'536;
  static constexpr uint64_t kDefaultAlignment = 32;
};

// Block of a ggml type by its id in today's numbering.
struct GgmlTypeInfo {
  uint32_t id;
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};

// Null for ids Isotherm does not know.
const GgmlTypeInfo* FindGgmlType(uint32_t id);

}  // namespace isotherm
