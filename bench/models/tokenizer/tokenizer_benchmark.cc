// Tokenizer speed on one core, in bytes of text a second.
//
//   ISOTHERM_TEST_MODEL=smollm2.gguf build/bench/tokenizer_benchmark
//
// Without a model the small vocabulary of the tests is measured. Each case first checks that what
// it encodes reads back as the text.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "benchmark/benchmark.h"
#include "models/tokenizer/gguf_spec.h"
#include "models/tokenizer/stream_decoder.h"
#include "models/tokenizer/tokenizer.h"
#include "tests/models/tokenizer/vectors.h"

namespace isotherm {
namespace {

std::unique_ptr<Tokenizer> MakeTokenizer() {
  absl::StatusOr<TokenizerSpec> spec = testing_vectors::ReadSpec("bpe.json", "gpt2", "smollm");
  if (const char* path = std::getenv("ISOTHERM_TEST_MODEL"); path != nullptr) {
    const auto file = GgufFile::Open(path);
    spec = file.ok() ? ReadTokenizerSpec(**file) : absl::StatusOr<TokenizerSpec>(file.status());
  }
  auto tokenizer = spec.ok() ? Tokenizer::Create(*std::move(spec))
                             : absl::StatusOr<std::unique_ptr<Tokenizer>>(spec.status());
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    std::exit(65);
  }
  return *std::move(tokenizer);
}

const Tokenizer& SharedTokenizer() {
  static const Tokenizer& tokenizer = *MakeTokenizer().release();
  return tokenizer;
}

constexpr size_t kTextBytes = size_t{1} << 20;

// English prose: sentences in random order, so that words repeat as they do but lines do not.
std::string English() {
  const char* const sentences[] = {
      "The committee met on Tuesday to discuss the new budget, but nobody could agree on it.",
      "She said that the river had risen by almost 2 metres since 1987; we didn't believe her.",
      "Most of the work is done by a small part of the network, which is why it can be fast.",
      "If you've never seen the northern lights, you'll hardly imagine how quietly they move.",
      "\"Where were you yesterday evening?\" asked the inspector, looking up from his papers.",
      "Photosynthesis turns carbon dioxide and water into sugar, using the energy of light.",
      "It's a long way from the village to the station, so take the bus or leave early.",
      "In the end the experiment failed, and the results were published all the same.",
      "Children learn languages with astonishing ease, whereas adults have to study grammar.",
      "The museum (open from 9 to 17 o'clock) shows maps, coins, letters and old instruments.",
  };
  std::mt19937 random(1);
  std::string out;
  while (out.size() < kTextBytes) {
    out += sentences[random() % std::size(sentences)];
    out += random() % 5 == 0 ? "\n\n" : " ";
  }
  return out;
}

// Random words of 3 to 11 letters: nearly none is a token, so every piece is merged.
std::string RandomWords() {
  std::mt19937 random(2);
  std::string out;
  while (out.size() < kTextBytes) {
    for (size_t n = 3 + random() % 9; n > 0; --n) out += static_cast<char>('a' + random() % 26);
    out += ' ';
  }
  return out;
}

std::string AllScripts() {
  std::string out;
  while (out.size() < kTextBytes) {
    for (const std::string& text : testing_vectors::ReadTexts()) out += text + "\n";
  }
  return out;
}

std::string OneLetter() { return std::string(kTextBytes, 'a'); }

void EncodeText(benchmark::State& state, std::string (*make)()) {
  const Tokenizer& tokenizer = SharedTokenizer();
  const std::string text = make();
  const auto check = tokenizer.Encode(text, false, false);
  if (!check.ok() || (make != AllScripts && tokenizer.Decode(*check) != text)) {
    state.SkipWithError("the text does not read back");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.Encode(text, false, false));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["tokens"] = static_cast<double>(check->size());
}
BENCHMARK_CAPTURE(EncodeText, english, English)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(EncodeText, random_words, RandomWords)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(EncodeText, all_scripts, AllScripts)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(EncodeText, one_letter, OneLetter)->Unit(benchmark::kMillisecond);

void EncodeSpm(benchmark::State& state) {
  const auto tokenizer =
      Tokenizer::Create(testing_vectors::ReadSpec("spm.json", "llama", "")).value();
  const std::string text = English();
  if (tokenizer->Decode(tokenizer->Encode(text, false, false).value()) != text) {
    state.SkipWithError("the text does not read back");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->Encode(text, false, false));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(EncodeSpm)->Unit(benchmark::kMillisecond);

void StreamText(benchmark::State& state) {
  const Tokenizer& tokenizer = SharedTokenizer();
  const std::string text = English();
  const auto ids = tokenizer.Encode(text, false, false).value();
  for (auto _ : state) {
    StreamDecoder decoder(tokenizer);
    size_t bytes = 0;
    for (const int32_t id : ids) bytes += decoder.Append(id).size();
    if (bytes != text.size()) state.SkipWithError("the stream lost text");
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(StreamText)->Unit(benchmark::kMillisecond);

void CreateTokenizer(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(MakeTokenizer());
}
BENCHMARK(CreateTokenizer)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace isotherm

BENCHMARK_MAIN();
