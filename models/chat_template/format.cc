#include "models/chat_template/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/tokenizer/utf8.h"

namespace isotherm::chat {
namespace {

// Python's repr of a float: the shortest digits that read back, exponent outside of 1e-4..1e16.
std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[400];
  const double size = std::fabs(value);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value, format);
  std::string text(buffer, result.ptr);
  if (fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

void AppendStringRepr(const Text& text, Text& out) {
  const bool double_quotes = text.bytes().find('\'') != absl::string_view::npos &&
                             text.bytes().find('"') == absl::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  out.Append(absl::string_view(&quote, 1), true);
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeValidUtf8(text.bytes(), at);
    const bool trusted = text.trusted(at);
    if (c.code_point == '\\' || c.code_point == static_cast<char32_t>(quote)) {
      out.Append("\\", trusted);
      out.AppendRange(text, at, at + 1);
    } else if (c.code_point == '\n' || c.code_point == '\r' || c.code_point == '\t') {
      out.Append(c.code_point == '\n' ? "\\n" : c.code_point == '\r' ? "\\r" : "\\t", trusted);
    } else if (c.code_point < 0x20 || (c.code_point >= 0x7F && c.code_point <= 0xA0) ||
               c.code_point == 0xAD) {
      out.Append(absl::StrFormat("\\x%02x", static_cast<uint32_t>(c.code_point)), trusted);
    } else {
      out.AppendRange(text, at, at + c.bytes);
    }
    at += c.bytes;
  }
  out.Append(absl::string_view(&quote, 1), true);
}

void AppendRepr(RenderContext& context, const Value& value, Text& out);

void AppendPlain(RenderContext& context, const Value& value, Text& out) {
  if (const auto* b = As<bool>(value)) {
    out.Append(*b ? "True" : "False", true);
  } else if (const auto* integer = As<int64_t>(value)) {
    out.Append(absl::StrCat(*integer), true);
  } else if (const auto* d = As<double>(value)) {
    out.Append(FormatFloat(*d), true);
  } else if (std::holds_alternative<None>(value)) {
    out.Append("None", true);
  } else if (const auto* list = As<List>(value)) {
    out.Append(list->tuple ? "(" : "[", true);
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.Append(", ", true);
      AppendRepr(context, list->items[i], out);
    }
    if (list->tuple && list->items.size() == 1) out.Append(",", true);
    out.Append(list->tuple ? ")" : "]", true);
  } else if (const auto* dict = As<Dict>(value)) {
    out.Append("{", true);
    bool first = true;
    for (const auto& [key, item] : dict->entries) {
      if (!std::exchange(first, false)) out.Append(", ", true);
      AppendRepr(context, key, out);
      out.Append(": ", true);
      AppendRepr(context, item, out);
    }
    out.Append("}", true);
  } else if (!IsUndefined(value)) {
    context.Fail(absl::StrCat("cannot print a value of type ", TypeName(value)));
  }
}

void AppendRepr(RenderContext& context, const Value& value, Text& out) {
  if (const Text* text = As<Text>(value)) return AppendStringRepr(*text, out);
  if (IsUndefined(value)) return out.Append("Undefined", true);
  AppendPlain(context, value, out);
}

class JsonWriter {
 public:
  JsonWriter(RenderContext& context, const JsonOptions& options)
      : context_(context), options_(options) {}

  void Write(const Value& value, int level) {
    if (const Text* text = As<Text>(value)) return WriteString(*text);
    if (const auto* b = As<bool>(value)) return out_.Append(*b ? "true" : "false", true);
    if (std::holds_alternative<None>(value)) return out_.Append("null", true);
    if (const auto* d = As<double>(value)) {
      if (std::isnan(*d)) return out_.Append("NaN", true);
      if (std::isinf(*d)) return out_.Append(*d < 0 ? "-Infinity" : "Infinity", true);
      return out_.Append(FormatFloat(*d), true);
    }
    if (const auto* list = As<List>(value)) {
      out_.Append("[", true);
      for (size_t i = 0; i < list->items.size(); ++i) {
        Separate(i == 0, level + 1);
        Write(list->items[i], level + 1);
      }
      if (!list->items.empty()) Break(level);
      return out_.Append("]", true);
    }
    if (const auto* dict = As<Dict>(value)) return WriteDict(*dict, level);
    int64_t integer;
    if (AsInteger(value, &integer)) return out_.Append(absl::StrCat(integer), true);
    context_.Fail(absl::StrCat("cannot write a value of type ", TypeName(value), " as JSON"));
  }

  Text Take() { return std::move(out_); }

 private:
  void Break(int level) {
    if (options_.indent < 0) return;
    const size_t spaces = static_cast<size_t>(options_.indent) * static_cast<size_t>(level);
    if (!context_.Charge(spaces + 1)) return;
    out_.Append("\n" + std::string(spaces, ' '), true);
  }
  void Separate(bool first, int level) {
    if (!first) out_.Append(options_.indent < 0 ? ", " : ",", true);
    Break(level);
  }

  void WriteDict(const Dict& dict, int level) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) {
      if (As<Text>(entry.first) == nullptr) {
        context_.Fail("cannot write a dict with keys other than strings as JSON");
        return;
      }
      entries.push_back(&entry);
    }
    if (options_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) {
        return As<Text>(a->first)->bytes() < As<Text>(b->first)->bytes();
      });
    }
    out_.Append("{", true);
    for (size_t i = 0; i < entries.size(); ++i) {
      Separate(i == 0, level + 1);
      WriteString(*As<Text>(entries[i]->first));
      out_.Append(": ", true);
      Write(entries[i]->second, level + 1);
    }
    if (!entries.empty()) Break(level);
    out_.Append("}", true);
  }

  void WriteEscape(char32_t unit, bool trusted) {
    out_.Append(absl::StrFormat("\\u%04x", static_cast<uint32_t>(unit)), trusted);
  }

  void WriteString(const Text& text) {
    if (!context_.Charge(text.size())) return;
    out_.Append("\"", true);
    constexpr absl::string_view kSpecial = "\"\\\n\r\t\b\f";
    constexpr absl::string_view kEscaped = "\"\\nrtbf";
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = DecodeValidUtf8(text.bytes(), at);
      const bool trusted = text.trusted(at);
      const size_t known = c.code_point < 0x80 ? kSpecial.find(static_cast<char>(c.code_point))
                                               : absl::string_view::npos;
      if (known != absl::string_view::npos) {
        out_.Append("\\", trusted);
        out_.Append(kEscaped.substr(known, 1), trusted);
      } else if (c.code_point < 0x20) {
        WriteEscape(c.code_point, trusted);
      } else if (options_.ensure_ascii && c.code_point >= 0x80) {
        if (c.code_point >= 0x10000) {
          WriteEscape(0xD800 + ((c.code_point - 0x10000) >> 10), trusted);
          WriteEscape(0xDC00 + ((c.code_point - 0x10000) & 0x3FF), trusted);
        } else {
          WriteEscape(c.code_point, trusted);
        }
      } else {
        out_.AppendRange(text, at, at + c.bytes);
      }
      at += c.bytes;
    }
    out_.Append("\"", true);
  }

  RenderContext& context_;
  const JsonOptions& options_;
  Text out_;
};

}  // namespace

Text ToText(RenderContext& context, const Value& value) {
  if (!context.Charge(SizeOf(value))) return {};
  if (const Text* text = As<Text>(value)) return *text;
  Text out;
  AppendPlain(context, value, out);
  return out;
}

Text ToJson(RenderContext& context, const Value& value, const JsonOptions& options) {
  if (!context.Charge(SizeOf(value))) return {};
  JsonWriter writer(context, options);
  writer.Write(value, 0);
  return writer.Take();
}

}  // namespace isotherm::chat
