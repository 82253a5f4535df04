#pragma once

#include <cstdint>
#include <string>

namespace isotherm {

class Tokenizer;

// Turns generated ids into text as they come. Each returned string is valid UTF-8; the first bytes
// of a character wait for the rest. Control tokens give nothing. One thread; the tokenizer must
// outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that is complete now; may be empty. Bytes that begin no character become U+FFFD.
  std::string Append(int32_t id);

  // Call where the text ends for good: a character still waiting for its rest becomes one U+FFFD,
  // as Tokenizer::Decode shows it. After a failure leave it out.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::string held_;  // an incomplete character, at most 3 bytes
};

}  // namespace isotherm
