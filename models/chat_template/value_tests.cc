#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/string_ops.h"

namespace isotherm::chat {
namespace {

// Tests that need no argument; `known` is false for other names.
bool PlainTest(absl::string_view name, const Value& value, bool* known) {
  *known = true;
  const bool is_bool = std::holds_alternative<bool>(value);
  const bool is_integer = std::holds_alternative<int64_t>(value);
  const bool is_float = std::holds_alternative<double>(value);
  const Text* text = As<Text>(value);
  const bool is_list = As<List>(value) != nullptr;
  const bool is_dict = As<Dict>(value) != nullptr;
  if (name == "defined") return !IsUndefined(value);
  if (name == "undefined") return IsUndefined(value);
  if (name == "none") return std::holds_alternative<None>(value);
  if (name == "boolean") return is_bool;
  if (name == "true") return is_bool && std::get<bool>(value);
  if (name == "false") return is_bool && !std::get<bool>(value);
  if (name == "integer") return is_integer;
  if (name == "float") return is_float;
  if (name == "number") return is_bool || is_integer || is_float;
  if (name == "string") return text != nullptr;
  if (name == "mapping") return is_dict;
  if (name == "sequence") return text != nullptr || is_list || is_dict || IsUndefined(value);
  if (name == "iterable") return text != nullptr || is_list || is_dict || IsUndefined(value);
  if (name == "callable") return std::holds_alternative<Function>(value);
  const auto has_case = [&](bool (*wrong)(unsigned char), bool (*right)(unsigned char)) {
    return text != nullptr && std::none_of(text->bytes().begin(), text->bytes().end(), wrong) &&
           std::any_of(text->bytes().begin(), text->bytes().end(), right);
  };
  if (name == "lower") return has_case(absl::ascii_isupper, absl::ascii_islower);
  if (name == "upper") return has_case(absl::ascii_islower, absl::ascii_isupper);
  *known = false;
  return false;
}

bool CompareTest(RenderContext& context, absl::string_view name, const Value& value,
                 const Value& other) {
  int order = 0;
  if (!Compare(value, other, &order)) {
    context.Fail(
        absl::StrCat("cannot order values of types ", TypeName(value), " and ", TypeName(other)));
    return false;
  }
  if (name == "lt" || name == "lessthan" || name == "<") return order < 0;
  if (name == "le" || name == "<=") return order <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order > 0;
  return order >= 0;
}

bool IntegerTest(RenderContext& context, absl::string_view name, const Value& value,
                 const Arguments& arguments) {
  int64_t integer;
  if (!context.ReadInteger(&value, 0, &integer)) return false;
  if (name == "even") return integer % 2 == 0;
  if (name == "odd") return integer % 2 != 0;
  int64_t divisor;
  if (!context.ReadInteger(arguments.Get(0, "num"), 0, &divisor)) return false;
  if (divisor == 0) {
    context.Fail("divisibleby needs a number other than 0");
    return false;
  }
  return divisor == -1 || integer % divisor == 0;
}

}  // namespace

bool ApplyTest(RenderContext& context, absl::string_view name, const Value& value,
               const Arguments& arguments) {
  bool known;
  if (!context.Charge(8)) return false;
  const bool result = PlainTest(name, value, &known);
  if (known) return result;
  if (name == "even" || name == "odd" || name == "divisibleby") {
    return IntegerTest(context, name, value, arguments);
  }
  const Value* other = arguments.Get(0, "other");
  const auto is_any = [&](std::initializer_list<absl::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (!is_any({"eq", "equalto", "==", "ne", "!=", "sameas", "in", "lt", "lessthan", "<", "le",
               "<=", "gt", "greaterthan", ">", "ge", ">="})) {
    context.Fail(absl::StrCat("test '", name.substr(0, 64), "' is not supported"));
    return false;
  }
  if (other == nullptr) {
    context.Fail(absl::StrCat("test '", name, "' needs an argument"));
    return false;
  }
  if (!context.Charge(SizeOf(value))) return false;
  if (is_any({"eq", "equalto", "=="})) return Equal(value, *other);
  if (is_any({"ne", "!="})) return !Equal(value, *other);
  if (name == "sameas") return value.index() == other->index() && Equal(value, *other);
  if (name == "in") return Contains(context, value, *other);
  return CompareTest(context, name, value, *other);
}

}  // namespace isotherm::chat
