#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/format.h"
#include "models/chat_template/string_ops.h"

namespace isotherm::chat {
namespace {

using Filter = Value (*)(RenderContext&, const Value&, const Arguments&);

std::optional<Text> OptionalText(RenderContext& context, const Value* value) {
  if (value == nullptr || std::holds_alternative<None>(*value)) return std::nullopt;
  return ToText(context, *value);
}

Value Trim(RenderContext& context, const Value& value, const Arguments& arguments) {
  const Text text = ToText(context, value);
  const std::optional<Text> set = OptionalText(context, arguments.Get(0, "chars"));
  if (set.has_value() && !context.Charge(text.size() * set->size())) return Undefined{};
  return MakeText(Strip(text, set.has_value() ? &*set : nullptr, StripSide::kBoth));
}

template <Text (*kMap)(const Text&)>
Value MapText(RenderContext& context, const Value& value, const Arguments&) {
  return MakeText(kMap(ToText(context, value)));
}

Value Length(RenderContext& context, const Value& value, const Arguments&) {
  int64_t length;
  if (!context.Charge(SizeOf(value))) return Undefined{};
  if (LengthOf(value, &length)) return length;
  return context.Fail(absl::StrCat("a value of type ", TypeName(value), " has no length"));
}

Value Join(RenderContext& context, const Value& value, const Arguments& arguments) {
  const Text separator = OptionalText(context, arguments.Get(0, "d")).value_or(Text());
  const Value* attribute = arguments.Get(1, "attribute");
  const auto items = context.Iterate(value);
  Text out;
  for (size_t i = 0; i < items->items.size(); ++i) {
    if (!context.Charge(separator.size() + 8)) return Undefined{};
    if (i > 0) out.Append(separator);
    out.Append(ToText(context, attribute == nullptr
                                   ? items->items[i]
                                   : GetItem(context, items->items[i], *attribute)));
  }
  return MakeText(std::move(out));
}

Value Default(RenderContext& context, const Value& value, const Arguments& arguments) {
  const Value* fallback = arguments.Get(0, "default_value");
  const Value* boolean = arguments.Get(1, "boolean");
  const bool replaces =
      IsUndefined(value) || (boolean != nullptr && Truthy(*boolean) && !Truthy(value));
  if (!replaces) return value;
  return fallback == nullptr ? MakeText(Text()) : *fallback;
}

Value First(RenderContext& context, const Value& value, const Arguments&) {
  const auto items = context.Iterate(value);
  return items->items.empty() ? Value(Undefined{"first item"}) : items->items.front();
}

Value Last(RenderContext& context, const Value& value, const Arguments&) {
  const auto items = context.Iterate(value);
  return items->items.empty() ? Value(Undefined{"last item"}) : items->items.back();
}

Value Json(RenderContext& context, const Value& value, const Arguments& arguments) {
  JsonOptions options;
  const Value* ascii = arguments.Get(0, "ensure_ascii");
  const Value* indent = arguments.Get(1, "indent");
  const Value* sort = arguments.Get(3, "sort_keys");
  if (ascii != nullptr) options.ensure_ascii = Truthy(*ascii);
  if (sort != nullptr) options.sort_keys = Truthy(*sort);
  if (indent != nullptr && !std::holds_alternative<None>(*indent)) {
    int64_t spaces;
    if (!context.ReadInteger(indent, 0, &spaces)) return Undefined{};
    if (spaces < 0 || spaces > 16) return context.Fail("tojson: indent has to be 0 to 16");
    options.indent = static_cast<int>(spaces);
  }
  return MakeText(ToJson(context, value, options));
}

Value ReplaceFilter(RenderContext& context, const Value& value, const Arguments& arguments) {
  const Value* from = arguments.Get(0, "old");
  const Value* to = arguments.Get(1, "new");
  int64_t count;
  if (from == nullptr || to == nullptr) return context.Fail("replace needs two strings");
  if (!context.ReadInteger(arguments.Get(2, "count"), -1, &count)) return Undefined{};
  const Text text = ToText(context, value);
  const Text old = ToText(context, *from);
  if (!context.Charge(SearchCost(text, old))) return Undefined{};
  return MakeText(Replace(context, text, old, ToText(context, *to), count));
}

Value String(RenderContext& context, const Value& value, const Arguments&) {
  return MakeText(ToText(context, value));
}

Value Integer(RenderContext& context, const Value& value, const Arguments& arguments) {
  int64_t integer;
  double number;
  if (AsInteger(value, &integer)) return integer;
  const Value* given = arguments.Get(0, "default");
  Value fallback = given == nullptr ? Value(int64_t{0}) : *given;
  if (AsNumber(value, &number)) {
    if (!(std::fabs(number) < 9e18)) return fallback;
    return static_cast<int64_t>(number);
  }
  const Text* text = As<Text>(value);
  if (text == nullptr) return fallback;
  const Text trimmed = Strip(*text, nullptr, StripSide::kBoth);
  const absl::string_view digits = trimmed.bytes();
  const char* end = digits.data() + digits.size();
  const bool plus = !digits.empty() && digits[0] == '+';
  const auto parsed = std::from_chars(digits.data() + (plus ? 1 : 0), end, integer);
  if (parsed.ec == std::errc() && parsed.ptr == end) return integer;
  const auto real = std::from_chars(digits.data() + (plus ? 1 : 0), end, number);
  if (real.ec == std::errc() && real.ptr == end && std::fabs(number) < 9e18) {
    return static_cast<int64_t>(number);
  }
  return fallback;
}

Value Float(RenderContext& context, const Value& value, const Arguments& arguments) {
  double number;
  if (AsNumber(value, &number)) return number;
  const Value* given = arguments.Get(0, "default");
  if (const Text* text = As<Text>(value)) {
    const Text trimmed = Strip(*text, nullptr, StripSide::kBoth);
    const absl::string_view digits = trimmed.bytes();
    const char* end = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end) return number;
  }
  return given == nullptr ? Value(0.0) : *given;
}

Value ToList(RenderContext& context, const Value& value, const Arguments&) {
  return context.MakeList(context.Iterate(value)->items);
}

Value Reverse(RenderContext& context, const Value& value, const Arguments&) {
  std::vector<Value> items = context.Iterate(value)->items;
  std::reverse(items.begin(), items.end());
  if (As<Text>(value) == nullptr) return context.MakeList(std::move(items));
  Text out;
  for (const Value& character : items) out.Append(*As<Text>(character));
  return MakeText(std::move(out));
}

Value Items(RenderContext& context, const Value& value, const Arguments&) {
  if (IsUndefined(value)) return context.MakeList({});
  return CallMethod(context, value, "items", {});
}

bool SortValues(RenderContext& context, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  if (!context.Charge(keyed.size() * 64)) return false;
  for (auto& [key, value] : keyed) {
    int order;
    if (!context.Charge(SizeOf(key) * 16)) return false;
    if (!Compare(keyed.front().first, key, &order)) {
      context.Fail("cannot sort values of different types");
      return false;
    }
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    int order = 0;
    Compare(a.first, b.first, &order);
    return reverse ? order > 0 : order < 0;
  });
  return true;
}

Value Fold(RenderContext& context, const Value& value, bool case_sensitive) {
  const Text* text = As<Text>(value);
  return text == nullptr || case_sensitive ? value : MakeText(Lower(*text));
}

Value Sort(RenderContext& context, const Value& value, const Arguments& arguments) {
  const Value* reverse = arguments.Get(0, "reverse");
  const Value* case_sensitive = arguments.Get(1, "case_sensitive");
  const Value* attribute = arguments.Get(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  const auto iterated = context.Iterate(value);
  for (const Value& item : iterated->items) {
    const Value key = attribute == nullptr ? item : GetItem(context, item, *attribute);
    keyed.emplace_back(Fold(context, key, case_sensitive != nullptr && Truthy(*case_sensitive)),
                       item);
  }
  if (!SortValues(context, keyed, reverse != nullptr && Truthy(*reverse))) return Undefined{};
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return context.MakeList(std::move(items));
}

Value DictSort(RenderContext& context, const Value& value, const Arguments&) {
  const Dict* dict = As<Dict>(value);
  if (dict == nullptr) return context.Fail("dictsort needs a dict");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, item] : dict->entries) {
    keyed.emplace_back(Fold(context, key, false), context.MakeList({key, item}, true));
  }
  if (!SortValues(context, keyed, false)) return Undefined{};
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return context.MakeList(std::move(items));
}

Value Unique(RenderContext& context, const Value& value, const Arguments&) {
  std::vector<Value> seen;
  std::vector<Value> items;
  const auto iterated = context.Iterate(value);
  for (const Value& item : iterated->items) {
    Value key = Fold(context, item, false);
    if (!context.Charge(SizeOf(key) * (seen.size() + 1))) return Undefined{};
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& v) { return Equal(v, key); })) {
      continue;
    }
    seen.push_back(std::move(key));
    items.push_back(item);
  }
  return context.MakeList(std::move(items));
}

Arguments Rest(const Arguments& arguments, size_t skip) {
  Arguments rest;
  for (size_t i = skip; i < arguments.positional.size(); ++i) {
    rest.positional.push_back(arguments.positional[i]);
  }
  rest.named = arguments.named;
  return rest;
}

// select, reject, selectattr, rejectattr: keeps items whose value passes a test.
template <bool kAttribute, bool kKeep>
Value Select(RenderContext& context, const Value& value, const Arguments& arguments) {
  const size_t skip = kAttribute ? 1 : 0;
  if (arguments.positional.size() < skip) return context.Fail("selectattr needs an attribute");
  const bool has_test = arguments.positional.size() > skip;
  const Text* test = has_test ? As<Text>(arguments.positional[skip]) : nullptr;
  if (has_test && test == nullptr) return context.Fail("the name of a test has to be a string");
  const Arguments rest = Rest(arguments, skip + 1);
  std::vector<Value> items;
  const auto iterated = context.Iterate(value);
  for (const Value& item : iterated->items) {
    if (!context.Charge(32)) return Undefined{};
    const Value looked_at = kAttribute ? GetItem(context, item, arguments.positional[0]) : item;
    const bool passes =
        has_test ? ApplyTest(context, test->bytes(), looked_at, rest) : Truthy(looked_at);
    if (passes == kKeep) items.push_back(item);
  }
  return context.MakeList(std::move(items));
}

Value Map(RenderContext& context, const Value& value, const Arguments& arguments) {
  std::vector<Value> items;
  const Value* attribute = nullptr;
  const Value* fallback = nullptr;
  for (const auto& [name, argument] : arguments.named) {
    if (name == "attribute") attribute = &argument;
    if (name == "default") fallback = &argument;
  }
  const Text* filter = arguments.positional.empty() ? nullptr : As<Text>(arguments.positional[0]);
  if (attribute == nullptr && filter == nullptr) {
    return context.Fail("map needs the name of a filter, or attribute=");
  }
  if (filter != nullptr && filter->bytes() == "map") return context.Fail("map of map");
  const Arguments rest = Rest(arguments, 1);
  const auto iterated = context.Iterate(value);
  for (const Value& item : iterated->items) {
    if (!context.Charge(32)) return Undefined{};
    if (attribute == nullptr) {
      items.push_back(ApplyFilter(context, filter->bytes(), item, rest));
      continue;
    }
    Value found = GetItem(context, item, *attribute);
    if (IsUndefined(found) && fallback != nullptr) found = *fallback;
    items.push_back(std::move(found));
  }
  return context.MakeList(std::move(items));
}

Value Indent(RenderContext& context, const Value& value, const Arguments& arguments) {
  int64_t width;
  if (!context.ReadInteger(arguments.Get(0, "width"), 4, &width)) return Undefined{};
  if (width < 0 || width > 64) return context.Fail("indent has to be 0 to 64");
  const Value* first = arguments.Get(1, "first");
  const Value* blank = arguments.Get(2, "blank");
  const Text text = ToText(context, value);
  const std::string spaces(static_cast<size_t>(width), ' ');
  Text out;
  bool indents = first != nullptr && Truthy(*first);
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.bytes().find('\n', at), text.size());
    if (!context.Charge(spaces.size() + 1)) return Undefined{};
    if (indents && (end > at || (blank != nullptr && Truthy(*blank)))) out.Append(spaces, true);
    out.AppendRange(text, at, std::min(end + 1, text.size()));
    indents = true;
    at = end + 1;
  }
  return MakeText(std::move(out));
}

Value Abs(RenderContext& context, const Value& value, const Arguments&) {
  int64_t integer;
  double number;
  if (AsInteger(value, &integer) && integer != INT64_MIN) return integer < 0 ? -integer : integer;
  if (AsNumber(value, &number)) return std::fabs(number);
  return context.Fail("abs needs a number");
}

Value Same(RenderContext&, const Value& value, const Arguments&) { return value; }

struct NamedFilter {
  absl::string_view name;
  Filter apply;
};
constexpr NamedFilter kFilters[] = {
    {"abs", Abs},
    {"capitalize", MapText<Capitalize>},
    {"count", Length},
    {"d", Default},
    {"default", Default},
    {"dictsort", DictSort},
    {"first", First},
    {"float", Float},
    {"indent", Indent},
    {"int", Integer},
    {"items", Items},
    {"join", Join},
    {"last", Last},
    {"length", Length},
    {"list", ToList},
    {"lower", MapText<Lower>},
    {"map", Map},
    {"reject", Select<false, false>},
    {"rejectattr", Select<true, false>},
    {"replace", ReplaceFilter},
    {"reverse", Reverse},
    {"safe", Same},
    {"select", Select<false, true>},
    {"selectattr", Select<true, true>},
    {"sort", Sort},
    {"string", String},
    {"title", MapText<Title>},
    {"tojson", Json},
    {"trim", Trim},
    {"unique", Unique},
    {"upper", MapText<Upper>},
};

}  // namespace

Value ApplyFilter(RenderContext& context, absl::string_view name, const Value& value,
                  const Arguments& arguments) {
  for (const NamedFilter& filter : kFilters) {
    if (filter.name == name) return filter.apply(context, value, arguments);
  }
  return context.Fail(absl::StrCat("filter '", name.substr(0, 64), "' is not supported"));
}

}  // namespace isotherm::chat
