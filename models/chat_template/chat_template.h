#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

struct ChatMessage {
  std::string role;
  std::string content;
  std::optional<std::string> name;
  std::optional<std::string> tool_call_id;
};

struct ChatTemplateInput {
  using Scalar = std::variant<bool, int64_t, std::string>;

  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;
  std::string bos_token;  // the model's own, hence trusted; empty if it has none
  std::string eos_token;
  // Further variables of the template; the user's, like the messages.
  std::vector<std::pair<std::string, Scalar>> kwargs;
  std::chrono::system_clock::time_point now;  // for strftime_now, in UTC
};

// Text of one source. Only in trusted spans may control tokens be parsed.
struct RenderedSpan {
  std::string text;
  bool trusted = false;
};

// A chat template: turns messages into the prompt a model was trained on. It is a program in a
// subset of Jinja that comes with the model file, hence outside input: source size, nesting, work
// and output are bounded. Every byte of the result knows whether the template or a user wrote it,
// through all string operations. Immutable; any thread.
class ChatTemplate {
 public:
  // InvalidArgument: not UTF-8, longer than 256 KiB, nested too deeply, a syntax error or a block
  // that is not supported, with the line.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source);
  // "chatml", "llama2", "alpaca" or "plain"; NotFound lists them.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> BuiltIn(absl::string_view name);

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // Neighbouring spans differ in trust, none is empty. InvalidArgument: text that is not UTF-8, a
  // reserved or doubled kwarg, an error of the template for this conversation (raise_exception
  // among them). ResourceExhausted: too much work or output.
  absl::StatusOr<std::vector<RenderedSpan>> Render(const ChatTemplateInput& input) const;

  const std::string& source() const { return source_; }

 private:
  struct Program;
  ChatTemplate(std::string source, std::unique_ptr<const Program> program);

  const std::string source_;
  const std::unique_ptr<const Program> program_;
};

}  // namespace isotherm
