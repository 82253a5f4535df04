#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gateway/text/text_model.h"

namespace isotherm {

// Tokens 0 to 255 are bytes; 256 is the end token, spelled "<end>"; 257 is "<turn>". The rest of
// the ids up to 499 give "[id]".
class FakeTextModel : public TextModel {
 public:
  static constexpr TokenId kEnd = 256;
  static constexpr TokenId kTurn = 257;

  FakeTextModel() {
    facts_ = {.name = "fake",
              .architecture = "llama",
              .quantisation = "Q8_0",
              .parameters = 1000,
              .context_length = 512,
              .vocab_size = 500,
              .num_layers = 2,
              .sparse = true,
              .chat_template = true};
  }

  const ModelFacts& facts() const override { return facts_; }
  absl::StatusOr<std::vector<TokenId>> Tokenize(std::span<const TextSegment> segments,
                                                bool) const override {
    std::vector<TokenId> out;
    for (const TextSegment& segment : segments) {
      absl::string_view text = segment.text;
      while (!text.empty()) {
        if (segment.parse_special && absl::StartsWith(text, "<end>")) {
          out.push_back(kEnd);
          text.remove_prefix(5);
        } else if (segment.parse_special && absl::StartsWith(text, "<turn>")) {
          out.push_back(kTurn);
          text.remove_prefix(6);
        } else {
          out.push_back(static_cast<unsigned char>(text.front()));
          text.remove_prefix(1);
        }
      }
    }
    return out;
  }
  std::string Piece(TokenId token) const override {
    if (token < 256) return std::string(1, static_cast<char>(token));
    if (token == kEnd) return "<end>";
    if (token == kTurn) return "<turn>";
    return absl::StrCat("[", token, "]");
  }
  std::string Decode(std::span<const TokenId> tokens) const override {
    std::string out;
    for (const TokenId token : tokens) {
      if (token != kEnd && token != kTurn) absl::StrAppend(&out, Piece(token));
    }
    return out;
  }
  std::unique_ptr<TextDecoder> NewDecoder() const override {
    struct Decoder : TextDecoder {
      explicit Decoder(const FakeTextModel& m) : model(m) {}
      std::string Append(TokenId token) override { return model.Decode({{token}}); }
      const FakeTextModel& model;
    };
    return std::make_unique<Decoder>(*this);
  }
  const std::vector<TokenId>& stop_ids() const override { return stop_ids_; }
  absl::StatusOr<std::vector<TextSegment>> RenderChat(const ChatInput& chat) const override {
    std::vector<TextSegment> out;
    for (const ChatTurn& message : chat.messages) {
      out.push_back({absl::StrCat("<turn>", message.role, ":"), true});
      out.push_back({message.content, false});
    }
    out.push_back({"<turn>assistant:", true});
    return out;
  }

 private:
  ModelFacts facts_;
  std::vector<TokenId> stop_ids_{kEnd};
};

}  // namespace isotherm
