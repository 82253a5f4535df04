#include <array>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/format.h"

namespace isotherm::chat {
namespace {

constexpr absl::string_view kFunctions[] = {"raise_exception", "strftime_now", "range", "namespace",
                                            "dict"};
constexpr size_t kMaxTimeFormat = 128;

Value RaiseException(RenderContext& context, const Arguments& arguments) {
  const Value* message = arguments.Get(0, "message");
  const Text text = message == nullptr ? Text() : ToText(context, *message);
  return context.Fail(text.bytes());
}

Value StrftimeNow(RenderContext& context, const Arguments& arguments) {
  const Value* argument = arguments.Get(0, "format");
  const Text* format = argument == nullptr ? nullptr : As<Text>(*argument);
  if (format == nullptr || format->size() > kMaxTimeFormat) {
    return context.Fail("strftime_now needs a short format string");
  }
  // Only conversions that every C library has; a stray one is undefined there.
  const absl::string_view bytes = format->bytes();
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\0') return context.Fail("strftime_now: NUL in the format");
    if (bytes[i] != '%') continue;
    if (++i == bytes.size() ||
        absl::string_view("aAbBdHIjmMpSyY%").find(bytes[i]) == absl::string_view::npos) {
      return context.Fail("strftime_now: conversion is not supported");
    }
  }
  if (bytes.empty()) return MakeText(Text());
  const std::time_t seconds = std::chrono::system_clock::to_time_t(context.now());
  std::tm utc{};
  if (gmtime_r(&seconds, &utc) == nullptr) return context.Fail("strftime_now: no such date");
  std::array<char, kMaxTimeFormat * 16> out;
  const size_t size = std::strftime(out.data(), out.size(), std::string(bytes).c_str(), &utc);
  return MakeText(Text(absl::string_view(out.data(), size), format->all_trusted()));
}

Value Range(RenderContext& context, const Arguments& arguments) {
  int64_t begin = 0, end = 0, step = 1;
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3) return context.Fail("range needs one to three integers");
  const auto read = [&](size_t i, int64_t* out) {
    return context.ReadInteger(&arguments.positional[i], 0, out);
  };
  const bool read_all = count == 1
                            ? read(0, &end)
                            : read(0, &begin) && read(1, &end) && (count == 2 || read(2, &step));
  if (!read_all) return Undefined{};
  if (step == 0) return context.Fail("range: the step must not be 0");
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (!context.Charge(64)) return Undefined{};
    items.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return context.MakeList(std::move(items));
}

// dict(a=1) and namespace(a=1) take names, and a dict first if there is one.
std::vector<std::pair<Value, Value>> NamedEntries(RenderContext& context,
                                                  const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> entries;
  if (!arguments.positional.empty()) {
    const Dict* dict = As<Dict>(arguments.positional[0]);
    if (dict == nullptr) {
      context.Fail("dict and namespace take a dict or named values");
      return entries;
    }
    entries = dict->entries;
  }
  for (const auto& [name, value] : arguments.named) {
    entries.emplace_back(TrustedText(name), value);
  }
  return entries;
}

Value MakeNamespace(RenderContext& context, const Arguments& arguments) {
  const auto entries = NamedEntries(context, arguments);
  if (!context.Charge(entries.size() * 64 + 64)) return Undefined{};
  Namespace* made = context.NewNamespace();
  for (const auto& [key, value] : entries) {
    const Text* name = As<Text>(key);
    if (name == nullptr) return context.Fail("namespace: names have to be strings");
    made->entries.emplace_back(std::string(name->bytes()), value);
  }
  return made;
}

}  // namespace

bool IsFunction(absl::string_view name) {
  return std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions);
}

Value CallFunction(RenderContext& context, absl::string_view name, const Arguments& arguments) {
  if (name == "raise_exception") return RaiseException(context, arguments);
  if (name == "strftime_now") return StrftimeNow(context, arguments);
  if (name == "range") return Range(context, arguments);
  if (name == "namespace") return MakeNamespace(context, arguments);
  if (name == "dict") return context.MakeDict(NamedEntries(context, arguments));
  return context.Fail(absl::StrCat("'", name.substr(0, 64), "' is undefined"));
}

}  // namespace isotherm::chat
