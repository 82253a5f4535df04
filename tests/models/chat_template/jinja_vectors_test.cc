// The prompts that jinja2 renders, for templates in the style of well-known models.

#include <chrono>
#include <fstream>
#include <map>

#include "gtest/gtest.h"
#include "models/chat_template/chat_template.h"
#include "nlohmann/json.hpp"

namespace isotherm {
namespace {

using nlohmann::json;

json ReadVectors() {
  std::ifstream file(ISOTHERM_SOURCE_DIR "/tests/models/chat_template/data/vectors.json");
  return json::parse(file);
}

ChatTemplateInput MakeInput(const json& messages, bool generate, const json& kwargs) {
  ChatTemplateInput input;
  for (const json& message : messages) {
    ChatMessage& made = input.messages.emplace_back();
    made.role = message["role"];
    made.content = message["content"];
    if (message.contains("name")) made.name = message["name"].get<std::string>();
    if (message.contains("tool_call_id")) {
      made.tool_call_id = message["tool_call_id"].get<std::string>();
    }
  }
  input.add_generation_prompt = generate;
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  for (const auto& [name, value] : kwargs.items()) {
    if (value.is_boolean()) {
      input.kwargs.emplace_back(name, value.get<bool>());
    } else {
      input.kwargs.emplace_back(name, value.get<std::string>());
    }
  }
  // 2024-07-26 13:05:09 UTC, as in the generator.
  input.now = std::chrono::system_clock::from_time_t(1721999109);
  return input;
}

TEST(JinjaVectorsTest, RendersAndFailsAsTheReferenceDoes) {
  const json vectors = ReadVectors();
  int differing = 0;
  for (const json& c : vectors["cases"]) {
    const std::string name = c[0];
    const auto parsed = ChatTemplate::Parse(vectors["templates"][name].get<std::string>());
    const ChatTemplateInput input =
        MakeInput(vectors["conversations"][c[1].get<size_t>()], c[2], c[3]);
    const auto spans = parsed.ok() ? (*parsed)->Render(input)
                                   : absl::StatusOr<std::vector<RenderedSpan>>(parsed.status());
    std::string text;
    if (spans.ok()) {
      for (const RenderedSpan& span : *spans) text += span.text;
    }
    const bool same = c[4].is_null() ? !spans.ok() : spans.ok() && text == c[4];
    if (same || ++differing > 10) continue;
    if (c[4].is_null()) {
      ADD_FAILURE() << name << ", conversation " << c[1] << ": wanted an error, got " << text;
    } else {
      ASSERT_TRUE(spans.ok()) << name << ", conversation " << c[1] << ": " << spans.status();
      EXPECT_EQ(text, c[4].get<std::string>()) << name << ", conversation " << c[1];
    }
  }
  EXPECT_EQ(differing, 0) << "of " << vectors["cases"].size();
  EXPECT_GE(vectors["conversations"].size(), 15);
}

}  // namespace
}  // namespace isotherm
