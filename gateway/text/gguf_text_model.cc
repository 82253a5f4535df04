#include "gateway/text/gguf_text_model.h"

#include <chrono>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "models/chat_template/chat_template.h"
#include "models/gguf/gguf_file.h"
#include "models/gguf/gguf_limits.h"
#include "models/model_config.h"
#include "models/tokenizer/gguf_spec.h"
#include "models/tokenizer/tokenizer.h"

namespace isotherm {
namespace {

constexpr char kTemplateKey[] = "tokenizer.chat_template";
constexpr int64_t kMaxTemplateBytes = 256 << 10;

// The type that holds most of the weights.
std::string Quantisation(const GgufFile& file) {
  std::map<uint32_t, int64_t> bytes;
  for (const GgufTensor& tensor : file.tensors()) bytes[tensor.ggml_type] += tensor.bytes;
  uint32_t best = 0;
  for (const auto& [type, count] : bytes) {
    if (count > bytes[best]) best = type;
  }
  const GgmlTypeInfo* info = FindGgmlType(best);
  return info != nullptr ? info->name : "unknown";
}

int64_t Parameters(const GgufFile& file) {
  int64_t total = 0;
  for (const GgufTensor& tensor : file.tensors()) total += tensor.columns() * tensor.rows();
  return total;
}

ChatTemplateInput::Scalar ToScalar(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  int64_t number = 0;
  if (absl::SimpleAtoi(text, &number)) return number;
  return text;
}

class GgufTextDecoder : public TextDecoder {
 public:
  explicit GgufTextDecoder(const Tokenizer& tokenizer) : decoder_(tokenizer) {}
  std::string Append(TokenId token) override { return decoder_.Append(token); }

 private:
  StreamDecoder decoder_;
};

class GgufTextModel : public TextModel {
 public:
  GgufTextModel(ModelFacts facts, std::unique_ptr<const Tokenizer> tokenizer,
                std::unique_ptr<const ChatTemplate> chat_template)
      : facts_(std::move(facts)),
        tokenizer_(std::move(tokenizer)),
        chat_template_(std::move(chat_template)) {}

  const ModelFacts& facts() const override { return facts_; }

  absl::StatusOr<std::vector<TokenId>> Tokenize(std::span<const TextSegment> segments,
                                                bool add_special) const override {
    std::vector<Tokenizer::Segment> views;
    for (const TextSegment& segment : segments) {
      views.push_back({.text = segment.text, .parse_special = segment.parse_special});
    }
    return tokenizer_->Encode(views, add_special);
  }
  std::string Piece(TokenId token) const override { return tokenizer_->Piece(token); }
  std::string Decode(std::span<const TokenId> tokens) const override {
    return tokenizer_->Decode(tokens);
  }
  std::unique_ptr<TextDecoder> NewDecoder() const override {
    return std::make_unique<GgufTextDecoder>(*tokenizer_);
  }
  const std::vector<TokenId>& stop_ids() const override { return tokenizer_->stop_ids(); }
  absl::StatusOr<std::vector<TextSegment>> RenderChat(const ChatInput& chat) const override;

 private:
  const ModelFacts facts_;
  const std::unique_ptr<const Tokenizer> tokenizer_;
  const std::unique_ptr<const ChatTemplate> chat_template_;  // null: none
};

absl::StatusOr<std::vector<TextSegment>> GgufTextModel::RenderChat(const ChatInput& chat) const {
  if (chat_template_ == nullptr) {
    return WithErrorReason(
        absl::InvalidArgumentError("the model has no chat template; send a prompt instead"),
        {.reason = "UNSUPPORTED_VALUE", .field = "chat"});
  }
  ChatTemplateInput input;
  for (const ChatTurn& turn : chat.messages) {
    ChatMessage message{.role = turn.role, .content = turn.content};
    if (!turn.name.empty()) message.name = turn.name;
    if (!turn.tool_call_id.empty()) message.tool_call_id = turn.tool_call_id;
    input.messages.push_back(std::move(message));
  }
  input.add_generation_prompt = !chat.continue_final_message;
  if (const auto bos = tokenizer_->bos(); bos.has_value()) {
    input.bos_token = tokenizer_->Piece(*bos);
  }
  if (const auto eos = tokenizer_->eos(); eos.has_value()) {
    input.eos_token = tokenizer_->Piece(*eos);
  }
  for (const auto& [key, value] : chat.template_kwargs) {
    input.kwargs.emplace_back(key, ToScalar(value));
  }
  input.now = std::chrono::system_clock::now();
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<RenderedSpan> spans, chat_template_->Render(input));
  if (chat.continue_final_message) {
    // What the template closes the last message with is not there yet.
    while (!spans.empty() && spans.back().trusted) spans.pop_back();
  }
  std::vector<TextSegment> segments;
  segments.reserve(spans.size());
  for (RenderedSpan& span : spans) {
    segments.push_back({.text = std::move(span.text), .parse_special = span.trusted});
  }
  return segments;
}

absl::Status BadTemplate(absl::string_view what) {
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat("--chat-template: ", what,
                                              "; give a file or one of chatml, llama2, alpaca, "
                                              "plain")),
      ExitCode::kUsage);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadAskedFor(const std::string& name) {
  if (auto built_in = ChatTemplate::BuiltIn(name); built_in.ok()) return built_in;
  std::ifstream file(name, std::ios::binary | std::ios::ate);
  if (!file) return BadTemplate(absl::StrCat("cannot read '", name, "'"));
  if (const auto bytes = static_cast<int64_t>(file.tellg()); bytes > kMaxTemplateBytes) {
    return BadTemplate(
        absl::StrCat("'", name, "' has ", bytes, " bytes, at most ", kMaxTemplateBytes));
  }
  file.seekg(0);
  std::stringstream text;
  text << file.rdbuf();
  auto parsed = ChatTemplate::Parse(text.str());
  if (!parsed.ok()) return BadTemplate(parsed.status().message());
  return parsed;
}

// Null: the file has none that can be used.
std::unique_ptr<ChatTemplate> LoadOwn(const GgufFile& file) {
  if (!file.Has(kTemplateKey)) return nullptr;
  absl::StatusOr<std::string> source = file.GetString(kTemplateKey);
  auto parsed = source.ok() ? ChatTemplate::Parse(*source) : source.status();
  if (parsed.ok()) return *std::move(parsed);
  LogWarning("the model's chat template cannot be used: {}; chat is off, try --chat-template",
             std::string(parsed.status().message()));
  return nullptr;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TextModel>> LoadGgufTextModel(
    const TextModelOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(options.path));
  ISOTHERM_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(*file));
  auto spec = ReadTokenizerSpec(*file);
  if (!spec.ok()) return WithExitCode(spec.status(), ExitCode::kBadData);
  auto tokenizer = Tokenizer::Create(*std::move(spec));
  if (!tokenizer.ok()) return WithExitCode(tokenizer.status(), ExitCode::kBadData);
  std::unique_ptr<ChatTemplate> chat_template;
  if (options.chat_template.empty()) {
    chat_template = LoadOwn(*file);
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(chat_template, LoadAskedFor(options.chat_template));
  }
  ModelFacts facts{.name = options.name.empty() ? config.name : options.name,
                   .architecture = config.architecture_name,
                   .quantisation = Quantisation(*file),
                   .parameters = Parameters(*file),
                   .context_length = config.context_length,
                   .vocab_size = config.vocab_size,
                   .num_layers = static_cast<int32_t>(config.num_layers),
                   .sparse = config.sparse,
                   .chat_template = chat_template != nullptr};
  return std::make_shared<GgufTextModel>(std::move(facts), *std::move(tokenizer),
                                         std::move(chat_template));
}

}  // namespace isotherm
