#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/step/sampling_params.h"
#include "gateway/request/generate_params.h"

namespace isotherm {

// A run of text from one source. Only where parse_special is set do spelled control tokens become
// control ids; what a user wrote never has it.
struct TextSegment {
  std::string text;
  bool parse_special = false;
};

struct ModelFacts {
  std::string name;
  std::string architecture;
  std::string quantisation;
  int64_t parameters = 0;
  int64_t context_length = 0;
  int64_t vocab_size = 0;
  int32_t num_layers = 0;
  bool sparse = false;
  bool chat_template = false;
};

// Ids to text as they come. One thread; the model outlives it.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // The bytes that the token adds; may be empty or end inside a character. Control tokens give
  // nothing.
  virtual std::string Append(TokenId token) = 0;
};

// What the gateway needs of a model: its text side and its figures. Immutable; any thread.
class TextModel {
 public:
  virtual ~TextModel() = default;
  virtual const ModelFacts& facts() const = 0;
  // InvalidArgument: not UTF-8, or too long.
  virtual absl::StatusOr<std::vector<TokenId>> Tokenize(std::span<const TextSegment> segments,
                                                        bool add_special) const = 0;
  virtual std::string Piece(TokenId token) const = 0;
  virtual std::string Decode(std::span<const TokenId> tokens) const = 0;
  virtual std::unique_ptr<TextDecoder> NewDecoder() const = 0;
  // Tokens that end a generation.
  virtual const std::vector<TokenId>& stop_ids() const = 0;
  // InvalidArgument: the template refuses the conversation, or there is none.
  virtual absl::StatusOr<std::vector<TextSegment>> RenderChat(const ChatInput& chat) const = 0;
};

}  // namespace isotherm
