#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/format.h"
#include "models/chat_template/string_ops.h"

namespace isotherm::chat {
namespace {

// A string argument; null, with an error noted unless it may be left out, if it is something else.
const Text* TextArgument(RenderContext& context, const Arguments& arguments, size_t place,
                         absl::string_view name, bool optional = false) {
  const Value* value = arguments.Get(place, name);
  if (value == nullptr || (optional && std::holds_alternative<None>(*value))) {
    if (!optional) context.Fail("a method lacks its string argument");
    return nullptr;
  }
  const Text* text = As<Text>(*value);
  if (text == nullptr) {
    context.Fail(absl::StrCat("a method wants a string, got a value of type ", TypeName(*value)));
  }
  return text;
}

// startswith and endswith take one string or a tuple of them.
bool MatchesEnd(RenderContext& context, const Text& text, const Arguments& arguments, bool start) {
  const Value* wanted = arguments.Get(0, "prefix");
  const auto matches = [&](const Text& end) {
    return start ? absl::StartsWith(text.bytes(), end.bytes())
                 : absl::EndsWith(text.bytes(), end.bytes());
  };
  if (wanted != nullptr) {
    if (const List* list = As<List>(*wanted); list != nullptr && list->tuple) {
      return std::any_of(list->items.begin(), list->items.end(), [&](const Value& item) {
        return As<Text>(item) != nullptr && matches(*As<Text>(item));
      });
    }
  }
  const Text* end = TextArgument(context, arguments, 0, "prefix");
  return end != nullptr && matches(*end);
}

Value StripMethod(RenderContext& context, const Text& text, const Arguments& arguments,
                  StripSide side) {
  const Text* set = TextArgument(context, arguments, 0, "chars", /*optional=*/true);
  if (set != nullptr && !context.Charge(text.size() * set->size())) return Undefined{};
  return MakeText(Strip(text, set, side));
}

Value SplitMethod(RenderContext& context, const Text& text, const Arguments& arguments,
                  bool from_right) {
  const Text* separator = TextArgument(context, arguments, 0, "sep", /*optional=*/true);
  int64_t max_splits;
  if (!context.ReadInteger(arguments.Get(1, "maxsplit"), -1, &max_splits)) return Undefined{};
  if (separator != nullptr && !context.Charge(SearchCost(text, *separator))) return Undefined{};
  return Split(context, text, separator, max_splits, from_right);
}

Value ReplaceMethod(RenderContext& context, const Text& text, const Arguments& arguments) {
  const Text* from = TextArgument(context, arguments, 0, "old");
  const Text* to = TextArgument(context, arguments, 1, "new");
  int64_t count;
  if (!context.ReadInteger(arguments.Get(2, "count"), -1, &count)) return Undefined{};
  if (context.failed() || !context.Charge(SearchCost(text, *from))) return Undefined{};
  return MakeText(Replace(context, text, *from, *to, count));
}

// find, rfind, count.
Value SearchMethod(RenderContext& context, const Text& text, absl::string_view name,
                   const Arguments& arguments) {
  const Text* pattern = TextArgument(context, arguments, 0, "sub");
  if (pattern == nullptr || !context.Charge(SearchCost(text, *pattern))) return Undefined{};
  const absl::string_view bytes = text.bytes();
  if (name == "count") {
    if (pattern->empty()) return CountCharacters(bytes) + 1;
    int64_t count = 0;
    for (size_t at = bytes.find(pattern->bytes()); at != absl::string_view::npos;
         at = bytes.find(pattern->bytes(), at + pattern->size())) {
      ++count;
    }
    return count;
  }
  const size_t at = name == "find" ? bytes.find(pattern->bytes()) : bytes.rfind(pattern->bytes());
  return at == absl::string_view::npos ? int64_t{-1} : CountCharacters(bytes.substr(0, at));
}

Value RemoveAffix(RenderContext& context, const Text& text, absl::string_view name,
                  const Arguments& arguments) {
  const Text* affix = TextArgument(context, arguments, 0, "prefix");
  if (affix == nullptr) return Undefined{};
  if (name == "removeprefix") {
    const bool has = absl::StartsWith(text.bytes(), affix->bytes());
    return MakeText(text.Range(has ? affix->size() : 0, text.size()));
  }
  const bool has = absl::EndsWith(text.bytes(), affix->bytes());
  return MakeText(text.Range(0, text.size() - (has ? affix->size() : 0)));
}

bool AllOf(absl::string_view bytes, bool (*test)(unsigned char)) {
  return !bytes.empty() && std::all_of(bytes.begin(), bytes.end(), test);
}

Value TextMethod(RenderContext& context, const Text& text, absl::string_view name,
                 const Arguments& arguments) {
  if (!context.Charge(text.size() + 8)) return Undefined{};
  if (name == "strip") return StripMethod(context, text, arguments, StripSide::kBoth);
  if (name == "lstrip") return StripMethod(context, text, arguments, StripSide::kLeft);
  if (name == "rstrip") return StripMethod(context, text, arguments, StripSide::kRight);
  if (name == "split") return SplitMethod(context, text, arguments, false);
  if (name == "rsplit") return SplitMethod(context, text, arguments, true);
  if (name == "splitlines") return SplitLines(context, text);
  if (name == "startswith") return MatchesEnd(context, text, arguments, true);
  if (name == "endswith") return MatchesEnd(context, text, arguments, false);
  if (name == "upper") return MakeText(Upper(text));
  if (name == "lower") return MakeText(Lower(text));
  if (name == "title") return MakeText(Title(text));
  if (name == "capitalize") return MakeText(Capitalize(text));
  if (name == "replace") return ReplaceMethod(context, text, arguments);
  if (name == "find" || name == "rfind" || name == "count") {
    return SearchMethod(context, text, name, arguments);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    return RemoveAffix(context, text, name, arguments);
  }
  if (name == "isdigit" || name == "isnumeric") return AllOf(text.bytes(), absl::ascii_isdigit);
  if (name == "isalpha") return AllOf(text.bytes(), absl::ascii_isalpha);
  if (name == "isspace") return AllOf(text.bytes(), absl::ascii_isspace);
  if (name == "join") {
    if (arguments.positional.empty()) return context.Fail("join needs a list");
    return ApplyFilter(context, "join", arguments.positional[0], {{MakeText(text)}, {}});
  }
  return context.Fail(absl::StrCat("strings have no method '", name.substr(0, 64), "'"));
}

Value DictMethod(RenderContext& context, const Dict& dict, absl::string_view name,
                 const Arguments& arguments) {
  if (!context.Charge(dict.entries.size() * 8 + 8)) return Undefined{};
  if (name == "get") {
    const Value* key = arguments.Get(0, "key");
    const Value* fallback = arguments.Get(1, "default");
    if (key == nullptr) return context.Fail("get needs a key");
    const Value* found = Find(dict, *key);
    return found != nullptr ? *found : fallback != nullptr ? *fallback : Value(None{});
  }
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) {
    if (name == "items") {
      items.push_back(context.MakeList({key, value}, /*tuple=*/true));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  if (name == "items" || name == "keys" || name == "values") {
    return context.MakeList(std::move(items));
  }
  return context.Fail(absl::StrCat("dicts have no method '", name.substr(0, 64), "'"));
}

}  // namespace

Value CallMethod(RenderContext& context, const Value& value, absl::string_view name,
                 const Arguments& arguments) {
  if (const Text* text = As<Text>(value)) return TextMethod(context, *text, name, arguments);
  if (const Dict* dict = As<Dict>(value)) return DictMethod(context, *dict, name, arguments);
  if (const auto* loop = std::get_if<const Loop*>(&value); loop != nullptr && name == "cycle") {
    if (arguments.positional.empty()) return context.Fail("cycle needs values");
    return arguments.positional[(*loop)->index % arguments.positional.size()];
  }
  if (const auto* undefined = As<Undefined>(value)) {
    return context.Fail(absl::StrCat("'", undefined->name, "' is undefined"));
  }
  return context.Fail(absl::StrCat("a value of type ", TypeName(value), " has no method '",
                                   name.substr(0, 64), "'"));
}

}  // namespace isotherm::chat
