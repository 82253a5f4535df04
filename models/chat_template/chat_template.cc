#include "models/chat_template/chat_template.h"

#include "absl/memory/memory.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "models/chat_template/ast.h"
#include "models/chat_template/builtin_templates.h"
#include "models/chat_template/evaluator.h"
#include "models/chat_template/lexer.h"
#include "models/chat_template/parser.h"
#include "models/tokenizer/utf8.h"

namespace isotherm {
namespace {

constexpr size_t kMaxSourceBytes = size_t{256} << 10;
constexpr size_t kMaxOutputBytes = size_t{16} << 20;
constexpr size_t kMaxKwargs = 16;
// Units of work: 32 a step, one a byte. 64 Mi is some 100 ms; a conversation gets 16 more for each
// of its bytes, since templates copy a message a few times.
constexpr size_t kBaseBudget = size_t{64} << 20;
constexpr size_t kBudgetPerInputByte = 16;
constexpr size_t kMaxInputBytes = size_t{64} << 20;

absl::Status CheckUtf8(absl::string_view text, absl::string_view what) {
  const size_t bad = FindInvalidUtf8(text);
  if (bad == absl::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not valid UTF-8 at byte ", bad, "; send UTF-8 text"));
}

chat::Value UserText(absl::string_view text) {
  return chat::MakeText(chat::Text(text, /*trusted=*/false));
}

absl::StatusOr<chat::Value> MessageValue(chat::RenderContext& context, const ChatMessage& message) {
  std::vector<std::pair<chat::Value, chat::Value>> entries;
  const auto add = [&](absl::string_view key, absl::string_view text) {
    entries.emplace_back(chat::TrustedText(key), UserText(text));
    return CheckUtf8(text, absl::StrCat("message ", key));
  };
  ISOTHERM_RETURN_IF_ERROR(add("role", message.role));
  ISOTHERM_RETURN_IF_ERROR(add("content", message.content));
  if (message.name.has_value()) ISOTHERM_RETURN_IF_ERROR(add("name", *message.name));
  if (message.tool_call_id.has_value()) {
    ISOTHERM_RETURN_IF_ERROR(add("tool_call_id", *message.tool_call_id));
  }
  return context.MakeDict(std::move(entries));
}

size_t InputBytes(const ChatTemplateInput& input) {
  size_t bytes = 0;
  for (const ChatMessage& m : input.messages) {
    bytes += 64 + m.role.size() + m.content.size() + (m.name ? m.name->size() : 0) +
             (m.tool_call_id ? m.tool_call_id->size() : 0);
  }
  for (const auto& [name, value] : input.kwargs) {
    const auto* text = std::get_if<std::string>(&value);
    bytes += name.size() + (text == nullptr ? 8 : text->size());
  }
  return bytes;
}

absl::StatusOr<chat::Evaluator::Variables> Globals(chat::RenderContext& context,
                                                   const ChatTemplateInput& input) {
  std::vector<chat::Value> messages;
  for (const ChatMessage& message : input.messages) {
    ISOTHERM_ASSIGN_OR_RETURN(chat::Value value, MessageValue(context, message));
    messages.push_back(std::move(value));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckUtf8(input.bos_token, "bos_token"));
  ISOTHERM_RETURN_IF_ERROR(CheckUtf8(input.eos_token, "eos_token"));
  chat::Evaluator::Variables globals;
  globals.emplace_back("messages", context.MakeList(std::move(messages)));
  globals.emplace_back("add_generation_prompt", input.add_generation_prompt);
  globals.emplace_back("bos_token", chat::TrustedText(input.bos_token));
  globals.emplace_back("eos_token", chat::TrustedText(input.eos_token));
  globals.emplace_back("tools", chat::None{});
  globals.emplace_back("documents", chat::None{});
  if (input.kwargs.size() > kMaxKwargs) {
    return absl::InvalidArgumentError(
        absl::StrCat("got ", input.kwargs.size(), " template arguments; at most ", kMaxKwargs));
  }
  for (const auto& [name, value] : input.kwargs) {
    for (const auto& [known, unused] : globals) {
      if (known != name) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("template argument '", absl::Utf8SafeCHexEscape(name.substr(0, 64)),
                       "' is given twice or reserved; use another name"));
    }
    if (const auto* text = std::get_if<std::string>(&value)) {
      ISOTHERM_RETURN_IF_ERROR(CheckUtf8(*text, "template argument"));
      globals.emplace_back(name, UserText(*text));
    } else if (const auto* integer = std::get_if<int64_t>(&value)) {
      globals.emplace_back(name, *integer);
    } else {
      globals.emplace_back(name, std::get<bool>(value));
    }
  }
  return globals;
}

std::vector<RenderedSpan> SplitByTrust(const chat::Text& text) {
  std::vector<RenderedSpan> spans;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + 1;
    while (end < text.size() && text.trusted(end) == text.trusted(begin)) ++end;
    spans.push_back({std::string(text.bytes().substr(begin, end - begin)), text.trusted(begin)});
    begin = end;
  }
  return spans;
}

}  // namespace

struct ChatTemplate::Program {
  chat::Body body;
};

ChatTemplate::ChatTemplate(std::string source, std::unique_ptr<const Program> program)
    : source_(std::move(source)), program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat template has ", source.size(),
                                                   " bytes; at most ", kMaxSourceBytes,
                                                   " are supported"));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckUtf8(source, "chat template"));
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<chat::Token> tokens, chat::Tokenize(source));
  auto program = std::make_unique<Program>();
  ISOTHERM_ASSIGN_OR_RETURN(program->body, chat::ParseTemplate(std::move(tokens)));
  return absl::WrapUnique(new ChatTemplate(std::string(source), std::move(program)));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::BuiltIn(absl::string_view name) {
  ISOTHERM_ASSIGN_OR_RETURN(const absl::string_view source, chat::BuiltInSource(name));
  return Parse(source);
}

absl::StatusOr<std::vector<RenderedSpan>> ChatTemplate::Render(
    const ChatTemplateInput& input) const {
  const size_t bytes = InputBytes(input);
  if (bytes > kMaxInputBytes) {
    return absl::InvalidArgumentError(absl::StrCat("conversation has ", bytes, " bytes; at most ",
                                                   kMaxInputBytes, " are supported"));
  }
  chat::RenderContext context(kBaseBudget + bytes * kBudgetPerInputByte, input.now);
  ISOTHERM_ASSIGN_OR_RETURN(chat::Evaluator::Variables globals, Globals(context, input));
  chat::Evaluator evaluator(context, std::move(globals), kMaxOutputBytes);
  const chat::Text text = evaluator.Run(program_->body);
  ISOTHERM_RETURN_IF_ERROR(context.status());
  return SplitByTrust(text);
}

}  // namespace isotherm
