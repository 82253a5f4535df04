#include "models/gguf/printable.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace isotherm {

std::string Printable(absl::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return absl::Utf8SafeCHexEscape(text);
  // A cut inside a character would leave bytes that are no UTF-8.
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  return absl::StrCat(absl::Utf8SafeCHexEscape(text.substr(0, end)), "... (", text.size(),
                      " bytes)");
}

}  // namespace isotherm
