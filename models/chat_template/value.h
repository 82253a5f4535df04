#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "models/chat_template/text.h"

namespace isotherm::chat {

struct List;
struct Dict;
struct Namespace;
struct Loop;
struct MacroStatement;

struct Undefined {
  std::string name;  // what was looked up, for messages
};
struct None {};
struct Function {
  std::string name;                       // a global function, or
  const MacroStatement* macro = nullptr;  // a macro of the template
};

// A value of the template language. Texts, lists and dicts are shared and never change once made;
// namespaces and loops belong to the evaluator, which outlives every value.
using Value = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                           std::shared_ptr<const List>, std::shared_ptr<const Dict>, Namespace*,
                           const Loop*, Function>;

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;      // nesting, so that recursion over values is bounded
  size_t weight = 1;  // SizeOf all items together: one list may stand in another many times
};

struct Dict {
  std::vector<std::pair<Value, Value>> entries;  // in insertion order; keys are scalars
  int depth = 1;
  size_t weight = 1;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> entries;
};

// State of one `for`: the variable `loop`.
struct Loop {
  std::shared_ptr<const List> items;
  size_t index = 0;
};

template <typename T>
const T* As(const Value& value) {
  if constexpr (std::is_same_v<T, Text> || std::is_same_v<T, List> || std::is_same_v<T, Dict>) {
    const auto* pointer = std::get_if<std::shared_ptr<const T>>(&value);
    return pointer == nullptr ? nullptr : pointer->get();
  } else {
    return std::get_if<T>(&value);
  }
}

inline Value MakeText(Text text) { return std::make_shared<const Text>(std::move(text)); }
inline Value TrustedText(absl::string_view bytes) { return MakeText(Text(bytes, true)); }

bool IsUndefined(const Value& value);
bool Truthy(const Value& value);
// As Python's ==; numbers compare across types.
bool Equal(const Value& a, const Value& b);
// -1, 0 or 1; false if the values have no order between them.
bool Compare(const Value& a, const Value& b, int* order);
// For messages: "string", "list".
absl::string_view TypeName(const Value& value);
// Numbers including booleans, as Python has it.
bool AsInteger(const Value& value, int64_t* out);
bool AsNumber(const Value& value, double* out);
// Nesting of containers: 0 for a scalar.
int DepthOf(const Value& value);
// Rough cost in bytes of looking at all of the value; saturates.
size_t SizeOf(const Value& value);
const Value* Find(const Dict& dict, const Value& key);
const Value* Find(const Dict& dict, absl::string_view key);

// The deepest nesting of lists and dicts a template may build.
constexpr int kMaxValueDepth = 32;

}  // namespace isotherm::chat
