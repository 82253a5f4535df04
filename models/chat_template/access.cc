#include <algorithm>

#include "absl/strings/str_cat.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/string_ops.h"
#include "models/tokenizer/utf8.h"

namespace isotherm::chat {
namespace {

Value LoopAttribute(const Loop& loop, absl::string_view name) {
  const auto& items = loop.items->items;
  const int64_t index = static_cast<int64_t>(loop.index);
  const int64_t length = static_cast<int64_t>(items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == length;
  if (name == "length") return length;
  if (name == "revindex") return length - index;
  if (name == "revindex0") return length - index - 1;
  if (name == "previtem" && index > 0) return items[loop.index - 1];
  if (name == "nextitem" && index + 1 < length) return items[loop.index + 1];
  return Undefined{absl::StrCat("loop.", name.substr(0, 64))};
}

// Byte offset of each character, and the end.
std::vector<size_t> CharacterOffsets(absl::string_view bytes) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < bytes.size(); at += DecodeValidUtf8(bytes, at).bytes) {
    offsets.push_back(at);
  }
  offsets.push_back(bytes.size());
  return offsets;
}

// The positions that a slice picks, by Python's rules.
bool SlicePositions(RenderContext& context, int64_t length, const Value* begin, const Value* end,
                    const Value* step, std::vector<size_t>* positions) {
  const auto given = [](const Value* v) {
    return v == nullptr || std::holds_alternative<None>(*v) ? nullptr : v;
  };
  int64_t stride, from, to;
  if (!context.ReadInteger(given(step), 1, &stride)) return false;
  if (stride == 0) {
    context.Fail("the step of a slice must not be 0");
    return false;
  }
  const int64_t lowest = stride > 0 ? 0 : -1;
  const int64_t highest = stride > 0 ? length : length - 1;
  const auto place = [&](const Value* v, int64_t fallback, int64_t* out) {
    if (!context.ReadInteger(given(v), fallback, out)) return false;
    if (given(v) == nullptr) return true;
    if (*out < 0) *out = *out < -length ? lowest : *out + length;
    *out = std::clamp(*out, lowest, highest);
    return true;
  };
  if (!place(begin, stride > 0 ? lowest : highest, &from)) return false;
  if (!place(end, stride > 0 ? highest : lowest, &to)) return false;
  for (int64_t i = from; stride > 0 ? i < to : i > to;) {
    positions->push_back(static_cast<size_t>(i));
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  return true;
}

}  // namespace

bool LengthOf(const Value& value, int64_t* length) {
  if (const Text* text = As<Text>(value)) {
    *length = CountCharacters(text->bytes());
  } else if (const List* list = As<List>(value)) {
    *length = static_cast<int64_t>(list->items.size());
  } else if (const Dict* dict = As<Dict>(value)) {
    *length = static_cast<int64_t>(dict->entries.size());
  } else if (IsUndefined(value)) {
    *length = 0;
  } else {
    return false;
  }
  return true;
}

Value GetAttribute(RenderContext& context, const Value& value, absl::string_view name) {
  if (!context.Charge(8)) return Undefined{};
  if (const Dict* dict = As<Dict>(value)) {
    if (!context.Charge(dict->entries.size())) return Undefined{};
    if (const Value* found = Find(*dict, name)) return *found;
  } else if (const auto* loop = std::get_if<const Loop*>(&value)) {
    return LoopAttribute(**loop, name);
  } else if (const auto* space = std::get_if<Namespace*>(&value)) {
    if (!context.Charge((*space)->entries.size())) return Undefined{};
    for (const auto& [key, item] : (*space)->entries) {
      if (key == name) return item;
    }
  } else if (const auto* undefined = As<Undefined>(value)) {
    return context.Fail(absl::StrCat("'", undefined->name, "' is undefined"));
  }
  return Undefined{std::string(name.substr(0, 64))};
}

Value GetItem(RenderContext& context, const Value& value, const Value& key) {
  const Text* name = As<Text>(key);
  if (const Dict* dict = As<Dict>(value)) {
    if (!context.Charge(dict->entries.size() + SizeOf(key))) return Undefined{};
    const Value* found = Find(*dict, key);
    if (found != nullptr) return *found;
  } else if (int64_t index; AsInteger(key, &index)) {
    int64_t length;
    const bool has_items = As<List>(value) != nullptr || As<Text>(value) != nullptr;
    if (has_items && context.Charge(As<Text>(value) == nullptr ? 1 : As<Text>(value)->size())) {
      LengthOf(value, &length);
      if (index < 0) index += length;
      if (index < 0 || index >= length) return Undefined{"item"};
      if (const List* list = As<List>(value)) return list->items[static_cast<size_t>(index)];
      const Text& text = *As<Text>(value);
      const std::vector<size_t> offsets = CharacterOffsets(text.bytes());
      const size_t at = static_cast<size_t>(index);
      return MakeText(text.Range(offsets[at], offsets[at + 1]));
    }
  }
  if (name != nullptr && As<Dict>(value) == nullptr) {
    return GetAttribute(context, value, name->bytes());
  }
  if (const auto* undefined = As<Undefined>(value)) {
    return context.Fail(absl::StrCat("'", undefined->name, "' is undefined"));
  }
  return Undefined{name == nullptr ? "item" : std::string(name->bytes().substr(0, 64))};
}

Value GetSlice(RenderContext& context, const Value& value, const Value* begin, const Value* end,
               const Value* step) {
  int64_t length;
  const List* list = As<List>(value);
  const Text* text = As<Text>(value);
  if (list == nullptr && text == nullptr) {
    if (IsUndefined(value)) {
      return context.Fail(absl::StrCat("'", As<Undefined>(value)->name, "' is undefined"));
    }
    return context.Fail(absl::StrCat("cannot slice a value of type ", TypeName(value)));
  }
  LengthOf(value, &length);
  if (!context.Charge(static_cast<size_t>(length) * 8)) return Undefined{};
  std::vector<size_t> positions;
  if (!SlicePositions(context, length, begin, end, step, &positions)) return Undefined{};
  if (list != nullptr) {
    std::vector<Value> items;
    items.reserve(positions.size());
    for (const size_t i : positions) items.push_back(list->items[i]);
    return context.MakeList(std::move(items), list->tuple);
  }
  const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
  Text out;
  for (const size_t i : positions) out.AppendRange(*text, offsets[i], offsets[i + 1]);
  return MakeText(std::move(out));
}

bool Contains(RenderContext& context, const Value& needle, const Value& haystack) {
  if (const Text* text = As<Text>(haystack)) {
    const Text* part = As<Text>(needle);
    if (part == nullptr) {
      context.Fail(
          absl::StrCat("cannot look for a value of type ", TypeName(needle), " in a string"));
      return false;
    }
    if (!context.Charge(SearchCost(*text, *part))) return false;
    return text->bytes().find(part->bytes()) != absl::string_view::npos;
  }
  if (const Dict* dict = As<Dict>(haystack)) {
    return context.Charge(dict->entries.size() + SizeOf(needle)) && Find(*dict, needle) != nullptr;
  }
  if (const List* list = As<List>(haystack)) {
    if (!context.Charge(list->items.size() * SizeOf(needle))) return false;
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& item) { return Equal(item, needle); });
  }
  if (!IsUndefined(haystack)) {
    context.Fail(absl::StrCat("cannot look into a value of type ", TypeName(haystack)));
  }
  return false;
}

}  // namespace isotherm::chat
