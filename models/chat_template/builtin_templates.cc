#include "models/chat_template/builtin_templates.h"

#include "absl/strings/str_cat.h"

namespace isotherm::chat {
namespace {

constexpr absl::string_view kChatMl = R"(
{%- for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %})";

constexpr absl::string_view kLlama2 = R"(
{%- if messages and messages[0].role == 'system' %}
  {%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
  {%- set turns = messages[1:] %}
{%- else %}
  {%- set system = '' %}
  {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('user and assistant have to take turns, the user first') }}
  {%- endif %}
  {%- if message.role == 'user' %}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() }}
    {{- ' [/INST]' }}
  {%- elif message.role == 'assistant' %}
    {{- ' ' + message.content.strip() + ' ' + eos_token }}
  {%- else %}
    {{- raise_exception('roles are system (first), user and assistant') }}
  {%- endif %}
{%- endfor %})";

constexpr absl::string_view kAlpaca = R"(
{%- for message in messages %}
  {%- if message.role == 'system' %}
    {{- message.content + '\n\n' }}
  {%- elif message.role == 'user' %}
    {{- '### Instruction:\n' + message.content + '\n\n' }}
  {%- else %}
    {{- '### Response:\n' + message.content + eos_token + '\n\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '### Response:\n' }}
{%- endif %})";

constexpr absl::string_view kPlain = R"(
{%- for message in messages %}
  {{- message.role | capitalize + ': ' + message.content + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- 'Assistant:' }}
{%- endif %})";

}  // namespace

absl::StatusOr<absl::string_view> BuiltInSource(absl::string_view name) {
  if (name == "chatml") return kChatMl;
  if (name == "llama2") return kLlama2;
  if (name == "alpaca") return kAlpaca;
  if (name == "plain") return kPlain;
  return absl::NotFoundError(absl::StrCat("no built-in chat template '", name.substr(0, 64),
                                          "'; there are chatml, llama2, alpaca and plain"));
}

}  // namespace isotherm::chat
