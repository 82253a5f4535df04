#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm {

// Type tags of GGUF metadata values.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct GgufValueTypeInfo {
  const char* name;
  uint64_t bytes;  // of a value; a string's length word; 0 for an array
};

// Null for a tag that GGUF does not define.
inline const GgufValueTypeInfo* FindGgufValueType(uint32_t tag) {
  static constexpr std::array<GgufValueTypeInfo, 13> kTypes = {{{"u8", 1},
                                                                {"i8", 1},
                                                                {"u16", 2},
                                                                {"i16", 2},
                                                                {"u32", 4},
                                                                {"i32", 4},
                                                                {"f32", 4},
                                                                {"bool", 1},
                                                                {"string", 8},
                                                                {"array", 0},
                                                                {"u64", 8},
                                                                {"i64", 8},
                                                                {"f64", 8}}};
  return tag < kTypes.size() ? &kTypes[tag] : nullptr;
}

// Where a checked value lies in the header text; nothing is copied until someone asks for it.
struct GgufValue {
  GgufValueType type = GgufValueType::kU8;     // kArray: see element
  GgufValueType element = GgufValueType::kU8;  // of an array
  uint64_t offset = 0;                         // of the value, a string's text, or element 0
  uint64_t count = 1;                          // a string's bytes, an array's elements

  bool is_array() const { return type == GgufValueType::kArray; }
};

}  // namespace isotherm
