#include "models/chat_template/value.h"

#include <algorithm>

namespace isotherm::chat {

bool IsUndefined(const Value& value) { return std::holds_alternative<Undefined>(value); }

bool Truthy(const Value& value) {
  if (const auto* b = As<bool>(value)) return *b;
  if (const auto* i = As<int64_t>(value)) return *i != 0;
  if (const auto* d = As<double>(value)) return *d != 0;
  if (const auto* text = As<Text>(value)) return !text->empty();
  if (const auto* list = As<List>(value)) return !list->items.empty();
  if (const auto* dict = As<Dict>(value)) return !dict->entries.empty();
  return !IsUndefined(value) && !std::holds_alternative<None>(value);
}

bool AsInteger(const Value& value, int64_t* out) {
  if (const auto* b = As<bool>(value)) {
    *out = *b ? 1 : 0;
    return true;
  }
  if (const auto* i = As<int64_t>(value)) {
    *out = *i;
    return true;
  }
  return false;
}

bool AsNumber(const Value& value, double* out) {
  if (const auto* d = As<double>(value)) {
    *out = *d;
    return true;
  }
  int64_t integer;
  if (!AsInteger(value, &integer)) return false;
  *out = static_cast<double>(integer);
  return true;
}

bool Equal(const Value& a, const Value& b) {
  int64_t ia, ib;
  if (AsInteger(a, &ia) && AsInteger(b, &ib)) return ia == ib;
  double da, db;
  if (AsNumber(a, &da) && AsNumber(b, &db)) return da == db;
  if (a.index() != b.index()) return false;
  if (const auto* text = As<Text>(a)) return text->bytes() == As<Text>(b)->bytes();
  if (const auto* list = As<List>(a)) {
    const auto& other = *As<List>(b);
    return list->tuple == other.tuple && list->items.size() == other.items.size() &&
           std::equal(list->items.begin(), list->items.end(), other.items.begin(), Equal);
  }
  if (const auto* dict = As<Dict>(a)) {
    const auto& other = *As<Dict>(b);
    if (dict->entries.size() != other.entries.size()) return false;
    for (const auto& [key, value] : dict->entries) {
      const Value* found = Find(other, key);
      if (found == nullptr || !Equal(value, *found)) return false;
    }
    return true;
  }
  if (std::holds_alternative<Namespace*>(a)) {
    return std::get<Namespace*>(a) == std::get<Namespace*>(b);
  }
  if (std::holds_alternative<const Loop*>(a)) {
    return std::get<const Loop*>(a) == std::get<const Loop*>(b);
  }
  if (const auto* function = As<Function>(a)) {
    return function->name == As<Function>(b)->name && function->macro == As<Function>(b)->macro;
  }
  return true;  // none == none, undefined == undefined
}

bool Compare(const Value& a, const Value& b, int* order) {
  double da, db;
  int64_t ia, ib;
  if (AsInteger(a, &ia) && AsInteger(b, &ib)) {
    *order = ia < ib ? -1 : ia > ib;
    return true;
  }
  if (AsNumber(a, &da) && AsNumber(b, &db)) {
    *order = da < db ? -1 : da > db;
    return true;
  }
  const Text* ta = As<Text>(a);
  const Text* tb = As<Text>(b);
  if (ta != nullptr && tb != nullptr) {
    // Byte order of UTF-8 is code point order, which is Python's.
    const int difference = ta->bytes().compare(tb->bytes());
    *order = difference < 0 ? -1 : difference > 0;
    return true;
  }
  return false;
}

absl::string_view TypeName(const Value& value) {
  constexpr absl::string_view kNames[] = {"undefined value", "none",   "boolean", "integer",
                                          "float",           "string", "list",    "dict",
                                          "namespace",       "loop",   "function"};
  return kNames[value.index()];
}

int DepthOf(const Value& value) {
  if (const auto* list = As<List>(value)) return list->depth;
  if (const auto* dict = As<Dict>(value)) return dict->depth;
  return 0;  // namespaces and loops belong to the evaluator: no value's end ends them
}

size_t SizeOf(const Value& value) {
  if (const auto* text = As<Text>(value)) return text->size() + 1;
  if (const auto* list = As<List>(value)) return list->weight;
  if (const auto* dict = As<Dict>(value)) return dict->weight;
  return 8;
}

const Value* Find(const Dict& dict, const Value& key) {
  for (const auto& [name, value] : dict.entries) {
    if (Equal(name, key)) return &value;
  }
  return nullptr;
}

const Value* Find(const Dict& dict, absl::string_view key) {
  for (const auto& [name, value] : dict.entries) {
    const Text* text = As<Text>(name);
    if (text != nullptr && text->bytes() == key) return &value;
  }
  return nullptr;
}

}  // namespace isotherm::chat
