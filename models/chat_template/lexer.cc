#include "models/chat_template/lexer.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "models/tokenizer/utf8.h"

namespace isotherm::chat {
namespace {

// More brackets than this cannot be parsed anyway; bounds the lexer's stack of open brackets.
constexpr size_t kMaxOpenBrackets = 256;

bool IsNameStart(char c) { return absl::ascii_isalpha(c) || c == '_'; }
bool IsNamePart(char c) { return absl::ascii_isalnum(c) || c == '_'; }

// CR LF and CR are read as LF, and one line break at the end does not count.
std::string NormalizeLines(absl::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out.push_back('\n');
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : owned_(std::move(source)), source_(owned_) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) ISOTHERM_RETURN_IF_ERROR(LexTextAndTag());
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("chat template, line ", line_, ": ", what));
  }
  void Add(TokenKind kind, absl::string_view text) {
    tokens_.push_back({kind, std::string(text), line_});
  }
  bool StartsWith(size_t at, absl::string_view what) const {
    return source_.substr(std::min(at, source_.size()), what.size()) == what;
  }
  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + to, '\n'));
    at_ = to;
  }

  size_t FindTag(size_t from) const {
    for (size_t i = source_.find('{', from); i != absl::string_view::npos;
         i = source_.find('{', i + 1)) {
      if (StartsWith(i, "{{") || StartsWith(i, "{%") || StartsWith(i, "{#")) return i;
    }
    return source_.size();
  }

  // The text before a tag, without what the tag's sign or lstrip_blocks takes away.
  void AddText(size_t begin, size_t end, char sign, bool strips_line) {
    absl::string_view text = source_.substr(begin, end - begin);
    if (sign == '-') {
      text = absl::StripTrailingAsciiWhitespace(text);
    } else if (sign != '+' && strips_line) {
      const size_t line_break = text.rfind('\n');
      const size_t start = line_break == absl::string_view::npos ? 0 : line_break + 1;
      const bool whole_line = start > 0 || at_line_start_;
      if (whole_line && absl::StripAsciiWhitespace(text.substr(start)).empty()) {
        text = text.substr(0, start);
      }
    }
    if (!text.empty()) Add(TokenKind::kText, text);
  }

  // Steps over the end of a tag at at_, of which `close` is the last two characters.
  void SkipTagEnd(absl::string_view close, char sign, bool trims_line) {
    size_t to = at_ + close.size() + (sign == 0 ? 0 : 1);
    if (sign == '-') {
      while (to < source_.size() && absl::ascii_isspace(source_[to])) ++to;
    } else if (sign == 0 && trims_line && StartsWith(to, "\n")) {
      ++to;
    }
    at_line_start_ = to > 0 && source_[to - 1] == '\n';
    Advance(to);
  }

  absl::Status LexTextAndTag() {
    const size_t tag = FindTag(at_);
    if (tag == source_.size()) {
      AddText(at_, tag, 0, false);
      Advance(tag);
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    char sign = tag + 2 < source_.size() ? source_[tag + 2] : 0;
    if (sign != '-' && sign != '+') sign = 0;
    AddText(at_, tag, sign, kind != '{');
    Advance(tag + 2 + (sign == 0 ? 0 : 1));
    if (kind == '#') return SkipComment();
    if (kind == '%' && IsRawTag()) return LexRaw();
    Add(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "");
    return LexTag(kind == '%');
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", at_);
    if (end == absl::string_view::npos) return Error("comment is not closed; add #}");
    char sign = end > at_ ? source_[end - 1] : 0;
    if (sign != '-' && sign != '+') sign = 0;
    Advance(sign == 0 ? end : end - 1);
    SkipTagEnd("#}", sign, true);
    return absl::OkStatus();
  }

  // Whether a block tag, opened before at_, is `name`; steps over nothing. `end` is its close.
  bool IsPlainTag(size_t at, absl::string_view name, size_t* end) const {
    const auto skip = [&] {
      while (at < source_.size() && absl::ascii_isspace(source_[at])) ++at;
    };
    skip();
    if (!StartsWith(at, name)) return false;
    at += name.size();
    skip();
    *end = at;
    return StartsWith(at, "%}") || StartsWith(at, "-%}") || StartsWith(at, "+%}");
  }
  bool IsRawTag() const {
    size_t end;
    return IsPlainTag(at_, "raw", &end);
  }

  absl::Status LexRaw() {
    size_t end = 0;
    IsPlainTag(at_, "raw", &end);
    Advance(end);
    const char open_sign = source_[at_] == '%' ? 0 : source_[at_];
    SkipTagEnd("%}", open_sign, true);
    const size_t begin = at_;
    for (size_t tag = source_.find("{%", at_); tag != absl::string_view::npos;
         tag = source_.find("{%", tag + 2)) {
      char sign = tag + 2 < source_.size() ? source_[tag + 2] : 0;
      if (sign != '-' && sign != '+') sign = 0;
      size_t close = 0;
      if (!IsPlainTag(tag + 2 + (sign == 0 ? 0 : 1), "endraw", &close)) continue;
      AddText(begin, tag, sign, true);
      Advance(close);
      SkipTagEnd("%}", source_[at_] == '%' ? 0 : source_[at_], true);
      return absl::OkStatus();
    }
    return Error("raw block is not closed; add {% endraw %}");
  }

  absl::Status LexTag(bool block) {
    const absl::string_view close = block ? "%}" : "}}";
    std::string brackets;
    while (true) {
      while (at_ < source_.size() && absl::ascii_isspace(source_[at_])) Advance(at_ + 1);
      if (at_ == source_.size()) return Error(absl::StrCat("tag is not closed; add ", close));
      if (brackets.empty()) {
        const char c = source_[at_];
        const char sign = (c == '-' || (block && c == '+')) ? c : 0;
        if (StartsWith(at_ + (sign == 0 ? 0 : 1), close)) {
          Add(block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "");
          SkipTagEnd(close, sign, block);
          return absl::OkStatus();
        }
      }
      ISOTHERM_RETURN_IF_ERROR(LexToken(brackets));
    }
  }

  absl::Status LexToken(std::string& brackets) {
    const char c = source_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      Add(TokenKind::kName, source_.substr(at_, end - at_));
      Advance(end);
      return absl::OkStatus();
    }
    if (absl::ascii_isdigit(c)) return LexNumber();
    if (c == '\'' || c == '"') return LexString();
    for (const absl::string_view op : {"//", "**", "==", "!=", ">=", "<="}) {
      if (!StartsWith(at_, op)) continue;
      Add(TokenKind::kOperator, op);
      Advance(at_ + op.size());
      return absl::OkStatus();
    }
    if (absl::string_view("+-*/%~<>=()[]{}.,:|").find(c) == absl::string_view::npos) {
      return Error(absl::StrCat("character ", static_cast<int>(static_cast<unsigned char>(c)),
                                " is not part of the template language"));
    }
    if (c == '(' || c == '[' || c == '{') {
      if (brackets.size() == kMaxOpenBrackets) return Error("brackets are nested too deeply");
      brackets.push_back(c == '(' ? ')' : static_cast<char>(c + 2));
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) {
        return Error(absl::StrCat("'", absl::string_view(&c, 1), "' closes no bracket"));
      }
      brackets.pop_back();
    }
    Add(TokenKind::kOperator, source_.substr(at_, 1));
    Advance(at_ + 1);
    return absl::OkStatus();
  }

  absl::Status LexNumber() {
    std::string digits;
    size_t end = at_;
    bool is_float = false;
    const auto take_digits = [&] {
      while (end < source_.size() && (absl::ascii_isdigit(source_[end]) || source_[end] == '_')) {
        if (source_[end] != '_') digits.push_back(source_[end]);
        ++end;
      }
    };
    const auto digit_at = [&](size_t i) {
      return i < source_.size() && absl::ascii_isdigit(source_[i]);
    };
    take_digits();
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_float = true;
      digits.push_back('.');
      ++end;
      take_digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign = StartsWith(end + 1, "+") || StartsWith(end + 1, "-") ? 1 : 0;
      if (digit_at(end + 1 + sign)) {
        is_float = true;
        digits.push_back('e');
        if (source_[end + 1] == '-') digits.push_back('-');
        end += 1 + sign;
        take_digits();
      }
    }
    Add(is_float ? TokenKind::kFloat : TokenKind::kInteger, digits);
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status LexString() {
    const char quote = source_[at_];
    const int first_line = line_;
    std::string value;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\') {
        value.push_back(source_[i]);
        continue;
      }
      if (++i == source_.size()) break;
      ISOTHERM_RETURN_IF_ERROR(LexEscape(&i, value));
    }
    if (i >= source_.size()) return Error("string is not closed");
    Advance(i + 1);
    tokens_.push_back({TokenKind::kString, std::move(value), first_line});
    return absl::OkStatus();
  }

  // `*i` is at the character after a backslash; left at the escape's last character.
  absl::Status LexEscape(size_t* i, std::string& value) {
    const char c = source_[*i];
    constexpr absl::string_view kFrom = "nrtabfv0\\'\"";
    constexpr absl::string_view kTo("\n\r\t\a\b\f\v\0\\'\"", 11);
    if (const size_t known = kFrom.find(c); known != absl::string_view::npos) {
      value.push_back(kTo[known]);
      return absl::OkStatus();
    }
    if (c == '\n') return absl::OkStatus();
    const int num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (num_digits == 0) {
      value.push_back('\\');
      value.push_back(c);
      return absl::OkStatus();
    }
    uint32_t code_point = 0;
    for (int k = 0; k < num_digits; ++k) {
      if (++*i >= source_.size() || !absl::ascii_isxdigit(source_[*i])) {
        return Error("escape in a string has too few hexadecimal digits");
      }
      const char d = absl::ascii_tolower(source_[*i]);
      code_point = code_point << 4 | static_cast<uint32_t>(d <= '9' ? d - '0' : d - 'a' + 10);
    }
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000)) {
      return Error("escape in a string is no Unicode character");
    }
    AppendUtf8(code_point, value);
    return absl::OkStatus();
  }

  const std::string owned_;
  const absl::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  return Lexer(NormalizeLines(source)).Run();
}

}  // namespace isotherm::chat
