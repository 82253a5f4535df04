#include "models/chat_template/render_context.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "models/tokenizer/utf8.h"

namespace isotherm::chat {
namespace {

constexpr size_t kMaxWeight = size_t{1} << 60;

// Takes `value` into a container's depth and weight.
template <typename Container>
void Account(const Value& value, Container& container) {
  container.depth = std::max(container.depth, DepthOf(value) + 1);
  container.weight = std::min(kMaxWeight, container.weight + SizeOf(value));
}

}  // namespace

const Value* Arguments::Get(size_t place, absl::string_view name) const {
  if (place < positional.size()) return &positional[place];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

bool RenderContext::Charge(size_t units) {
  if (failed()) return false;
  if (units > budget_) {
    budget_ = 0;
    status_ = absl::ResourceExhaustedError(
        "the chat template does too much work for this conversation; send less or use another "
        "template");
    return false;
  }
  budget_ -= units;
  return true;
}

Value RenderContext::Fail(absl::string_view what) {
  if (status_.ok()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("chat template: ", absl::Utf8SafeCHexEscape(what.substr(0, 300))));
  }
  return Undefined{};
}

Value RenderContext::MakeList(std::vector<Value> items, bool tuple) {
  if (!Charge(items.size() * 8 + 16)) return Undefined{};
  auto list = std::make_shared<List>();
  list->tuple = tuple;
  for (const Value& item : items) Account(item, *list);
  if (list->depth > kMaxValueDepth) return Fail("list is nested too deeply");
  list->items = std::move(items);
  return std::shared_ptr<const List>(std::move(list));
}

Value RenderContext::MakeDict(std::vector<std::pair<Value, Value>> entries) {
  if (!Charge(entries.size() * 16 + 16)) return Undefined{};
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, value] : entries) {
    if (DepthOf(key) > 0) return Fail("a list or dict cannot be a key");
    Account(key, *dict);
    Account(value, *dict);
  }
  if (dict->depth > kMaxValueDepth) return Fail("dict is nested too deeply");
  dict->entries = std::move(entries);
  return std::shared_ptr<const Dict>(std::move(dict));
}

std::shared_ptr<const List> RenderContext::Iterate(const Value& value) {
  static const auto* const kEmpty = new std::shared_ptr<const List>(std::make_shared<List>());
  if (const auto* list = std::get_if<std::shared_ptr<const List>>(&value)) return *list;
  std::vector<Value> items;
  if (const auto* dict = As<Dict>(value)) {
    for (const auto& entry : dict->entries) items.push_back(entry.first);
  } else if (const auto* text = As<Text>(value)) {
    if (!Charge(text->size() * 64)) return *kEmpty;
    for (size_t at = 0; at < text->size();) {
      const size_t end = at + DecodeValidUtf8(text->bytes(), at).bytes;
      items.push_back(MakeText(text->Range(at, end)));
      at = end;
    }
  } else if (!IsUndefined(value)) {
    Fail(absl::StrCat("cannot loop over a value of type ", TypeName(value)));
  }
  const Value list = MakeList(std::move(items));
  const auto* made = std::get_if<std::shared_ptr<const List>>(&list);
  return made == nullptr ? *kEmpty : *made;
}

bool RenderContext::ReadInteger(const Value* argument, int64_t fallback, int64_t* out) {
  *out = fallback;
  if (argument == nullptr || AsInteger(*argument, out)) return true;
  Fail(absl::StrCat("wanted an integer, got a value of type ", TypeName(*argument)));
  return false;
}

}  // namespace isotherm::chat
