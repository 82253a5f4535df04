// Input: one byte of mode, then
//   0-4  text for the vocabulary of the tests under gpt-2, smollm, falcon, llama-bpe, SPM
//   5-9  a vocabulary for the same five: lines of type digit and token, an empty line, lines of
//        merges, an empty line, and text for it
// Checked: invalid UTF-8 is refused, and only that; no control token comes out of untrusted text,
// however it is cut into segments; streaming gives what decoding gives, all of it UTF-8.

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/base/check.h"
#include "models/tokenizer/stream_decoder.h"
#include "models/tokenizer/tokenizer.h"
#include "models/tokenizer/utf8.h"
#include "tests/models/tokenizer/vectors.h"

namespace isotherm {
namespace {

constexpr absl::string_view kPres[] = {"gpt-2", "smollm", "falcon", "llama-bpe", ""};
constexpr size_t kNumKinds = std::size(kPres);

const Tokenizer& TestTokenizer(size_t kind) {
  static const auto& tokenizers = *[] {
    auto* made = new std::vector<std::unique_ptr<Tokenizer>>;
    for (const absl::string_view pre : kPres) {
      const bool spm = pre.empty();
      TokenizerSpec spec = testing_vectors::ReadSpec(spm ? "spm.json" : "bpe.json",
                                                     spm ? "llama" : "gpt2", std::string(pre));
      spec.add_bos = false;
      made->push_back(Tokenizer::Create(std::move(spec)).value());
    }
    return made;
  }();
  return *tokenizers[kind];
}

void CheckText(const Tokenizer& tokenizer, absl::string_view text) {
  const auto ids = tokenizer.Encode(text, false, false);
  ISOTHERM_CHECK(ids.ok() == (FindInvalidUtf8(text) == absl::string_view::npos));
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    ISOTHERM_CHECK(id >= 0 && id < tokenizer.vocab_size());
    // An SPM character without token may give <unk>, which is no control token of a template.
    ISOTHERM_CHECK(!tokenizer.IsControl(id) || id == 0);
  }
  const size_t cut = text.size() / 2;
  const Tokenizer::Segment halves[] = {{text.substr(0, cut), false}, {text.substr(cut), false}};
  ISOTHERM_CHECK(tokenizer.Encode(halves, false).value() == *ids);
  ISOTHERM_CHECK(tokenizer.Encode(text, true, true).ok());

  StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const int32_t id : *ids) {
    const std::string part = decoder.Append(id);
    ISOTHERM_CHECK(FindInvalidUtf8(part) == absl::string_view::npos);
    streamed += part;
  }
  streamed += decoder.Finish();
  const std::string decoded = tokenizer.Decode(*ids);
  // Decode takes off the space that encoding put first; a stream goes on from a prompt.
  ISOTHERM_CHECK(streamed == decoded || streamed == " " + decoded);
}

void CheckVocabulary(size_t kind, absl::string_view input) {
  TokenizerSpec spec;
  const bool spm = kPres[kind].empty();
  spec.model = spm ? "llama" : "gpt2";
  spec.pre = std::string(kPres[kind]);
  spec.add_bos = false;
  int part = 0;
  std::vector<std::string> text;
  for (const absl::string_view line : absl::StrSplit(input, '\n')) {
    if (part < 2 && line.empty()) {
      ++part;
    } else if (part == 0) {
      spec.token_types.push_back(line[0] - '0');
      spec.tokens.emplace_back(line.substr(1));
      spec.scores.push_back(static_cast<float>(line.size()));
    } else if (part == 1) {
      spec.merges.emplace_back(line);
    } else {
      text.emplace_back(line);
    }
  }
  if (spm && spec.tokens.size() < 3) return;
  const auto tokenizer = Tokenizer::Create(std::move(spec));
  if (!tokenizer.ok()) return;
  for (const std::string& line : text) {
    const auto ids = (*tokenizer)->Encode(line, true, true);
    if (ids.ok()) ISOTHERM_CHECK(FindInvalidUtf8((*tokenizer)->Decode(*ids)) == std::string::npos);
  }
}

}  // namespace
}  // namespace isotherm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t mode = data[0] % (2 * isotherm::kNumKinds);
  const absl::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (mode < isotherm::kNumKinds) {
    isotherm::CheckText(isotherm::TestTokenizer(mode), rest);
  } else {
    isotherm::CheckVocabulary(mode - isotherm::kNumKinds, rest);
  }
  return 0;
}
