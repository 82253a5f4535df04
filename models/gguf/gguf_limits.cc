#include "models/gguf/gguf_limits.h"

namespace isotherm {
namespace {

constexpr GgmlTypeInfo kTypes[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110}, {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210},
    {24, "I8", 1, 1},       {25, "I16", 1, 2},      {26, "I32", 1, 4},      {30, "BF16", 1, 2},
};

}  // namespace

const GgmlTypeInfo* FindGgmlType(uint32_t id) {
  for (const GgmlTypeInfo& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

}  // namespace isotherm
