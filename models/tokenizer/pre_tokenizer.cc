#include "models/tokenizer/pre_tokenizer.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "models/tokenizer/char_class.h"
#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr char32_t kLongS = 0x17F;  // folds to 's' when case is ignored

// A text seen as characters with classes. Offsets are bytes; an offset at the end has no class.
class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text), table_(CharClassTable::Get()) {}

  struct Char {
    char32_t code_point;
    CharClass char_class;
    uint32_t next;  // offset of the following character
  };
  bool AtEnd(uint32_t at) const { return at >= text_.size(); }
  // `at` is before the end.
  Char At(uint32_t at) const {
    const Utf8Char c = DecodeValidUtf8(text_, at);
    return {c.code_point, table_[c.code_point], at + c.bytes};
  }
  bool HasClass(uint32_t at, CharClass wanted) const {
    return !AtEnd(at) && At(at).char_class == wanted;
  }
  // First offset from `at` on whose character is not of class `wanted`.
  uint32_t SkipClass(uint32_t at, CharClass wanted) const {
    while (!AtEnd(at)) {
      const Char c = At(at);
      if (c.char_class != wanted) break;
      at = c.next;
    }
    return at;
  }
  // Same for [^\s\p{L}\p{N}]*.
  uint32_t SkipSymbols(uint32_t at) const {
    while (!AtEnd(at)) {
      const Char c = At(at);
      if (!IsSymbol(c.char_class)) break;
      at = c.next;
    }
    return at;
  }
  static bool IsSymbol(CharClass c) {
    return c == CharClass::kOther || c == CharClass::kPunctuation;
  }
  char ByteAt(uint32_t at) const { return AtEnd(at) ? '\0' : text_[at]; }

  // `\s+(?!\S)|\s+` at a space: the run without its last character if a non-space follows.
  uint32_t EndOfSpaces(uint32_t at) const {
    uint32_t last = at;
    uint32_t end = at;
    while (HasClass(end, CharClass::kSpace)) {
      last = end;
      end = At(end).next;
    }
    return AtEnd(end) || last == at ? end : last;
  }

 private:
  absl::string_view text_;
  const CharClassTable& table_;
};

// 's|'t|'re|'ve|'m|'ll|'d after an apostrophe at `at`; returns its end, or `at` if there is none.
uint32_t EndOfContraction(const Scanner& scan, uint32_t at, bool ignore_case) {
  if (scan.ByteAt(at) != '\'' || scan.AtEnd(at + 1)) return at;
  const auto lower = [&](uint32_t i) {
    const char c = scan.ByteAt(i);
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = lower(at + 1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  const char second = lower(at + 2);
  if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
  if (first == 'l' && second == 'l') return at + 3;
  if (ignore_case) {
    const Scanner::Char c = scan.At(at + 1);
    if (c.code_point == kLongS) return c.next;
  }
  return at;
}

// One piece of: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
uint32_t EndOfGpt2Piece(const Scanner& scan, uint32_t at) {
  if (const uint32_t end = EndOfContraction(scan, at, /*ignore_case=*/false); end != at) return end;
  const uint32_t body = scan.ByteAt(at) == ' ' ? at + 1 : at;
  if (!scan.AtEnd(body)) {
    const Scanner::Char c = scan.At(body);
    switch (c.char_class) {
      case CharClass::kLetter:
      case CharClass::kNumber:
        return scan.SkipClass(c.next, c.char_class);
      case CharClass::kOther:
      case CharClass::kPunctuation:
        return scan.SkipSymbols(c.next);
      case CharClass::kSpace:
        break;
    }
  }
  return scan.EndOfSpaces(at);
}

// One piece of: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
uint32_t EndOfLlamaBpePiece(const Scanner& scan, uint32_t at) {
  if (const uint32_t end = EndOfContraction(scan, at, /*ignore_case=*/true); end != at) return end;
  const Scanner::Char first = scan.At(at);
  if (first.char_class == CharClass::kLetter) return scan.SkipClass(first.next, first.char_class);
  if (first.char_class == CharClass::kNumber) {
    uint32_t end = first.next;
    for (int n = 1; n < 3 && scan.HasClass(end, CharClass::kNumber); ++n) end = scan.At(end).next;
    return end;
  }
  const bool newline = first.code_point == '\r' || first.code_point == '\n';
  if (!newline && scan.HasClass(first.next, CharClass::kLetter)) {
    return scan.SkipClass(first.next, CharClass::kLetter);
  }
  const uint32_t body = first.code_point == ' ' ? first.next : at;
  if (!scan.AtEnd(body) && Scanner::IsSymbol(scan.At(body).char_class)) {
    uint32_t end = scan.SkipSymbols(body);
    while (scan.ByteAt(end) == '\r' || scan.ByteAt(end) == '\n') ++end;
    return end;
  }
  // White space: through its last line break if it has one.
  uint32_t after_newline = at;
  for (uint32_t i = at; scan.HasClass(i, CharClass::kSpace);) {
    const Scanner::Char c = scan.At(i);
    if (c.code_point == '\r' || c.code_point == '\n') after_newline = c.next;
    i = c.next;
  }
  return after_newline != at ? after_newline : scan.EndOfSpaces(at);
}

void SplitGpt2(absl::string_view text, uint32_t base, std::vector<uint32_t>& ends) {
  const Scanner scan(text);
  for (uint32_t at = 0; !scan.AtEnd(at);) {
    at = EndOfGpt2Piece(scan, at);
    ends.push_back(base + at);
  }
}

void SplitLlamaBpe(absl::string_view text, std::vector<uint32_t>& ends) {
  const Scanner scan(text);
  for (uint32_t at = 0; !scan.AtEnd(at);) {
    at = EndOfLlamaBpePiece(scan, at);
    ends.push_back(at);
  }
}

// Each \p{N} alone, the rest as gpt-2.
void SplitSmollm(absl::string_view text, std::vector<uint32_t>& ends) {
  const Scanner scan(text);
  uint32_t start = 0;
  for (uint32_t at = 0; !scan.AtEnd(at);) {
    const Scanner::Char c = scan.At(at);
    if (c.char_class == CharClass::kNumber) {
      SplitGpt2(text.substr(start, at - start), start, ends);
      ends.push_back(c.next);
      start = c.next;
    }
    at = c.next;
  }
  SplitGpt2(text.substr(start), start, ends);
}

bool IsFalconPunctuation(const Scanner::Char& c) {
  if (c.char_class == CharClass::kPunctuation) return true;
  return c.code_point < 0x80 &&
         absl::string_view("$+<=>^~|`").find(static_cast<char>(c.code_point)) !=
             absl::string_view::npos;
}

bool IsAsciiDigit(char c) { return c >= '0' && c <= '9'; }

// gpt-2 pieces, then each run of three ASCII digits alone.
void SplitGpt2AndTriples(absl::string_view text, uint32_t base, std::vector<uint32_t>& ends) {
  const Scanner scan(text);
  for (uint32_t at = 0; !scan.AtEnd(at);) {
    const uint32_t end = EndOfGpt2Piece(scan, at);
    uint32_t cut = at;  // all before it is in `ends`
    uint32_t digits = 0;
    for (uint32_t i = at; i < end; ++i) {
      digits = IsAsciiDigit(text[i]) ? digits + 1 : 0;
      if (digits < 3) continue;
      if (cut < i - 2) ends.push_back(base + i - 2);
      cut = i + 1;
      ends.push_back(base + cut);
      digits = 0;
    }
    if (cut < end) ends.push_back(base + end);
    at = end;
  }
}

// [\p{P}$+<=>^~|`]+, then gpt-2 on the rest, then [0-9]{3}.
void SplitFalcon(absl::string_view text, std::vector<uint32_t>& ends) {
  const Scanner scan(text);
  uint32_t start = 0;
  for (uint32_t at = 0; !scan.AtEnd(at);) {
    Scanner::Char c = scan.At(at);
    if (!IsFalconPunctuation(c)) {
      at = c.next;
      continue;
    }
    SplitGpt2AndTriples(text.substr(start, at - start), start, ends);
    at = c.next;
    while (!scan.AtEnd(at) && IsFalconPunctuation(c = scan.At(at))) at = c.next;
    ends.push_back(at);  // the later steps leave punctuation whole
    start = at;
  }
  SplitGpt2AndTriples(text.substr(start), start, ends);
}

}  // namespace

absl::StatusOr<PreTokenizer> ParsePreTokenizer(absl::string_view pre) {
  if (pre == "gpt-2") return PreTokenizer::kGpt2;
  if (pre == "smollm") return PreTokenizer::kSmollm;
  if (pre == "falcon") return PreTokenizer::kFalcon;
  if (pre == "llama-bpe") return PreTokenizer::kLlamaBpe;
  return absl::InvalidArgumentError(absl::StrCat(
      "pre-tokenizer '", pre.substr(0, 64),
      "' is not known; known are gpt-2, smollm, falcon and llama-bpe: convert the model again so "
      "that tokenizer.ggml.pre names one of them"));
}

void SplitText(PreTokenizer kind, absl::string_view text, std::vector<uint32_t>& ends) {
  switch (kind) {
    case PreTokenizer::kGpt2:
      return SplitGpt2(text, 0, ends);
    case PreTokenizer::kSmollm:
      return SplitSmollm(text, ends);
    case PreTokenizer::kFalcon:
      return SplitFalcon(text, ends);
    case PreTokenizer::kLlamaBpe:
      return SplitLlamaBpe(text, ends);
  }
}

}  // namespace isotherm
