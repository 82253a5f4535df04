#include "models/chat_template/chat_template.h"

#include <ctime>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/small_stack.h"

namespace isotherm {
namespace {

using testing::HasSubstr;

ChatTemplateInput Conversation(std::vector<ChatMessage> messages) {
  ChatTemplateInput input;
  input.messages = std::move(messages);
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  return input;
}

ChatTemplateInput Saying(const std::string& content) {
  return Conversation({{.role = "user", .content = content}});
}

absl::StatusOr<std::vector<RenderedSpan>> Render(absl::string_view source,
                                                 const ChatTemplateInput& input) {
  const auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(input);
}

// "template text{user text}template text".
std::string Marked(const absl::StatusOr<std::vector<RenderedSpan>>& spans) {
  if (!spans.ok()) return std::string(spans.status().message());
  std::string out;
  for (const RenderedSpan& span : *spans) {
    out += span.trusted ? span.text : absl::StrCat("{", span.text, "}");
  }
  return out;
}

absl::StatusCode CodeOf(absl::string_view source) {
  return Render(source, Saying("hello")).status().code();
}

TEST(ChatTemplateTest, UserTextStaysMarkedThroughEveryOperation) {
  struct Case {
    const char* expression;
    const char* wanted;
  };
  const Case cases[] = {
      {"c", "{ a<b>,c }"},
      {"c | trim", "{a<b>,c}"},
      {"c.strip()", "{a<b>,c}"},
      {"'[' + c + ']'", "[{ a<b>,c }]"},
      {"'[' ~ c ~ 1 ~ ']'", "[{ a<b>,c }1]"},
      {"c[1:3]", "{a<}"},
      {"c[::-1]", "{ c,>b<a }"},
      {"c[2]", "{<}"},
      {"c | upper", "{ A<B>,C }"},
      {"c | replace('<b>', 'X')", "{ a}X{,c }"},
      {"'a-b' | replace('-', c)", "a{ a<b>,c }b"},
      {"c.split(',')[0]", "{ a<b>}"},
      {"c.split(',') | join('+')", "{ a<b>}+{c }"},
      {"[c, 'x'] | join(',')", "{ a<b>,c },x"},
      {"['x', 'y'] | join(c)", "x{ a<b>,c }y"},
      {"[c]", "['{ a<b>,c }']"},
      {"{'k': c}", "{'k': '{ a<b>,c }'}"},
      {"{c: 1} | tojson", "{\"{ a<b>,c }\": 1}"},
      {"c | tojson", "\"{ a<b>,c }\""},
      {"c | list | first", "{ }"},
      {"c * 2", "{ a<b>,c  a<b>,c }"},
      {"c | default('x')", "{ a<b>,c }"},
      {"c | string", "{ a<b>,c }"},
      {"messages | map(attribute='content') | first", "{ a<b>,c }"},
      {"c | indent(2, true)", "  { a<b>,c }"},
      {"namespace(x=c).x", "{ a<b>,c }"},
      {"dict(x=c).get('x')", "{ a<b>,c }"},
      {"c.splitlines()[0]", "{ a<b>,c }"},
      {"strftime_now(c)", "{ a<b>,c }"},
      {"kw", "{<kw>}"},
      {"messages[0].role", "{user}"},
      {"messages[0].name", "{<n>}"},
      {"bos_token", "<s>"},
  };
  ChatTemplateInput input = Conversation({{.role = "user", .content = " a<b>,c ", .name = "<n>"}});
  input.kwargs.emplace_back("kw", std::string("<kw>"));
  for (const Case& c : cases) {
    const std::string source =
        absl::StrCat("{% set c = messages[0].content %}{{ ", c.expression, " }}");
    EXPECT_EQ(Marked(Render(source, input)), c.wanted) << c.expression;
  }
}

TEST(ChatTemplateTest, UserTextStaysMarkedThroughMacrosAndSetBlocks) {
  const std::string source =
      "{% macro m(x) %}<{{ x }}>{% endmacro %}{% set b %}({{ messages[0].content }}){% endset %}"
      "{{ m(b) }}";
  EXPECT_EQ(Marked(Render(source, Saying("hi"))), "<({hi})>");
}

TEST(ChatTemplateTest, BuiltInTemplatesRenderAConversation) {
  const ChatTemplateInput input = Conversation({{.role = "system", .content = "S"},
                                                {.role = "user", .content = "U"},
                                                {.role = "assistant", .content = "A"},
                                                {.role = "user", .content = "V"}});
  const auto render = [&](absl::string_view name) {
    return Marked(ChatTemplate::BuiltIn(name).value()->Render(input));
  };
  EXPECT_EQ(render("chatml"),
            "<|im_start|>{system}\n{S}<|im_end|>\n<|im_start|>{user}\n{U}<|im_end|>\n"
            "<|im_start|>{assistant}\n{A}<|im_end|>\n<|im_start|>{user}\n{V}<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(render("llama2"),
            "<s>[INST] <<SYS>>\n{S}\n<</SYS>>\n\n{U} [/INST] {A} </s><s>[INST] {V} [/INST]");
  EXPECT_EQ(render("alpaca"),
            "{S}\n\n### Instruction:\n{U}\n\n### Response:\n{A}</s>\n\n### Instruction:\n{V}\n\n"
            "### Response:\n");
  EXPECT_EQ(render("plain"),
            "{System}: {S}\n{User}: {U}\n{Assistant}: {A}\n{User}: {V}\n"
            "Assistant:");
  EXPECT_EQ(ChatTemplate::BuiltIn("vicuna").status().code(), absl::StatusCode::kNotFound);
}

TEST(ChatTemplateTest, RaisedExceptionIsTheRequestsError) {
  const auto spans = Render("{{ raise_exception('roles have to alternate') }}", Saying("x"));
  EXPECT_EQ(spans.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(spans.status().message()), HasSubstr("roles have to alternate"));
}

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  const auto parsed = ChatTemplate::Parse("line 1\nline 2 {{ a }}\n{% if %}\n");
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("line 3"));
}

TEST(ChatTemplateTest, RefusesInputThatIsNotUtf8) {
  EXPECT_EQ(ChatTemplate::Parse("\xFF").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Render("{{ messages[0].content }}", Saying("\xC0\x80")).ok());
  ChatTemplateInput input = Saying("x");
  input.messages[0].role = "\xED\xA0\x80";
  EXPECT_FALSE(Render("x", input).ok());
}

TEST(ChatTemplateTest, KwargsCannotReplaceTheTemplatesOwnVariables) {
  for (const char* name : {"messages", "bos_token", "tools", "add_generation_prompt"}) {
    ChatTemplateInput input = Saying("x");
    input.kwargs.emplace_back(name, std::string("y"));
    EXPECT_FALSE(Render("x", input).ok()) << name;
  }
  ChatTemplateInput twice = Saying("x");
  twice.kwargs = {{"a", true}, {"a", false}};
  EXPECT_FALSE(Render("x", twice).ok());
}

std::string Repeated(absl::string_view unit, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) absl::StrAppend(&out, unit);
  return out;
}

TEST(ChatTemplateTest, DeepNestingIsRefusedNotRun) {
  testing_stack::RunOnSmallStack([] {
    const std::pair<const char*, const char*> nestings[] = {
        {"{% if true %}", "{% endif %}"},
        {"{% for x in [1] %}", "{% endfor %}"},
        {"{{ (", ""},
        {"{{ [", ""},
        {"{% set x %}", "{% endset %}"},
        {"{% macro m() %}", "{% endmacro %}"},
    };
    for (const auto& [open, close] : nestings) {
      EXPECT_FALSE(ChatTemplate::Parse(Repeated(open, 10000) + Repeated(close, 10000)).ok())
          << open;
    }
    for (const char* unit :
         {"(", "[", "{", "-", "not ", "a.", "a[", "a(", "1 if ", "1 + (", "x|f("}) {
      EXPECT_FALSE(ChatTemplate::Parse("{{ " + Repeated(unit, 10000)).ok()) << unit;
    }
    for (const char* unit : {" + 1", " and 1", "|trim", ".a", "[0]", "()", " ** 1", " if 1"}) {
      EXPECT_FALSE(ChatTemplate::Parse("{{ a" + Repeated(unit, 10000) + " }}").ok()) << unit;
    }
  });
}

TEST(ChatTemplateTest, LongButFlatTemplatesWork) {
  EXPECT_TRUE(ChatTemplate::Parse("{{ a" + Repeated(" ~ 1", 10000) + " }}").ok());
  std::string source = "{% if false %}";
  source += Repeated("{% elif false %}", 5000) + "{% else %}x{% endif %}";
  EXPECT_EQ(Marked(Render(source, Saying("y"))), "x");
}

TEST(ChatTemplateTest, EndlessOrGrowingTemplatesHitTheirCap) {
  const char* sources[] = {
      // Loops without end for all purposes.
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{{ range(10 ** 15) }}",
      "{% set ns = namespace(x=1) %}{% for a in range(1000000) %}"
      "{% for b in range(1000000) %}{% set ns.x = ns.x %}{% endfor %}{% endfor %}",
      // Text that doubles.
      "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}"
      "{% endfor %}",
      "{{ 'aaaaaaaa' * 10 ** 12 }}",
      "{{ [1] * 10 ** 12 }}",
      "{{ ('a' * 10000).replace('a', 'a' * 10000) }}",
      "{{ ('a' * 10000) | replace('', 'a' * 10000) }}",
      "{% for i in range(10000) %}{{ 'a' * 4000 }}{% endfor %}",
      // A list that holds itself twice, again and again, is small but long to print.
      "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(30) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
      "{{ ('a' * 1000000 + 'b') in ('a' * 4000000) }}",
  };
  for (const char* source : sources) {
    const std::clock_t start = std::clock();
    const absl::StatusCode code = CodeOf(source);
    EXPECT_TRUE(code == absl::StatusCode::kResourceExhausted ||
                code == absl::StatusCode::kInvalidArgument)
        << source << ": " << absl::StatusCodeToString(code);
    EXPECT_LT(std::clock() - start, 4 * CLOCKS_PER_SEC * testing_stack::kSlowdown) << source;
  }
}

TEST(ChatTemplateTest, RecursionAndDeepValuesHitTheirCap) {
  testing_stack::RunOnSmallStack([] {
    for (const char* source :
         {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
          "{% macro a(x) %}{{ b(x) }}{% endmacro %}{% macro b(x) %}{{ a(x) }}{% endmacro %}{{ a(1) "
          "}}",
          "{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor "
          "%}",
          "{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% set ns.x = {'a': ns.x} %}"
          "{% endfor %}"}) {
      EXPECT_EQ(CodeOf(source), absl::StatusCode::kInvalidArgument) << source;
    }
  });
}

TEST(ChatTemplateTest, ANamespaceMayHoldItself) {
  EXPECT_EQ(CodeOf("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me == [ns] }}"),
            absl::StatusCode::kOk);
}

TEST(ChatTemplateTest, NumbersNeitherWrapNorTrap) {
  for (const char* expression :
       {"9223372036854775807 + 1", "-9223372036854775807 - 2", "9223372036854775807 * 2", "2 ** 64",
        "1 // 0", "1 % 0", "1.0 / 0", "99999999999999999999", "(-9223372036854775807 - 1) // -1",
        "-(-9223372036854775807 - 1)"}) {
    EXPECT_EQ(CodeOf(absl::StrCat("{{ ", expression, " }}")), absl::StatusCode::kInvalidArgument)
        << expression;
  }
  EXPECT_EQ(Marked(Render("{{ 'abc'[-9223372036854775807:9223372036854775807] }}", Saying("x"))),
            "abc");
  EXPECT_EQ(Marked(Render("{{ 'abc'[::-9223372036854775807] }}", Saying("x"))), "c");
  EXPECT_EQ(Marked(Render("{{ (-9223372036854775807 - 1) % -1 }}", Saying("x"))), "0");
}

TEST(ChatTemplateTest, LargeConversationsRender) {
  ChatTemplateInput input;
  for (int i = 0; i < 4000; ++i) {
    input.messages.push_back(
        {.role = i % 2 == 0 ? "user" : "assistant", .content = std::string(1000, 'x')});
  }
  const auto spans = ChatTemplate::BuiltIn("chatml").value()->Render(input);
  ASSERT_TRUE(spans.ok()) << spans.status();
  EXPECT_EQ(spans->size(), 4000 * 4 + 1);
}

}  // namespace
}  // namespace isotherm
