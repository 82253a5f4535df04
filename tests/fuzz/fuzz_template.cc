// Input: a template, then perhaps a NUL and what the user says.
// Checked: nothing crashes or runs for long; what comes out is UTF-8, in spans that differ in
// trust from their neighbours; and a character that only the user wrote is never trusted.

#include <algorithm>
#include <string>

#include "common/base/check.h"
#include "models/chat_template/chat_template.h"
#include "models/tokenizer/utf8.h"

namespace {

// A private-use character: no function of the language makes it from anything else.
constexpr absl::string_view kUserMark = "\xEE\x80\x81";

void CheckSpans(const std::vector<isotherm::RenderedSpan>& spans, bool mark_is_users) {
  std::string all;
  for (size_t i = 0; i < spans.size(); ++i) {
    ISOTHERM_CHECK(!spans[i].text.empty());
    ISOTHERM_CHECK(i == 0 || spans[i].trusted != spans[i - 1].trusted);
    if (mark_is_users && spans[i].trusted) {
      ISOTHERM_CHECK(absl::string_view(spans[i].text).find(kUserMark) == absl::string_view::npos);
    }
    all += spans[i].text;
  }
  ISOTHERM_CHECK(isotherm::FindInvalidUtf8(all) == absl::string_view::npos);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t nul = std::min(input.find('\0'), input.size());
  const absl::string_view source = input.substr(0, nul);
  const auto parsed = isotherm::ChatTemplate::Parse(source);
  if (!parsed.ok()) return 0;
  const std::string said = std::string(kUserMark) + std::string(input.substr(nul));
  isotherm::ChatTemplateInput chat;
  chat.messages = {{.role = "system", .content = "Be brief."},
                   {.role = "user", .content = said, .name = std::string(kUserMark)},
                   {.role = "assistant", .content = "Yes."},
                   {.role = "user", .content = std::string(kUserMark)}};
  chat.bos_token = "<s>";
  chat.eos_token = "</s>";
  chat.kwargs = {{"flag", true}, {"number", int64_t{7}}, {"word", std::string(kUserMark)}};
  const auto spans = (*parsed)->Render(chat);
  if (!spans.ok()) return 0;
  // An escape in the template may spell the mark.
  const bool mark_is_users = source.find(kUserMark) == absl::string_view::npos &&
                             source.find('\\') == absl::string_view::npos;
  CheckSpans(*spans, mark_is_users);
  return 0;
}
