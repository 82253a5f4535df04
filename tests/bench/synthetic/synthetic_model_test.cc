#include "bench/synthetic/synthetic_model.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "bench/synthetic/activity.h"
#include "bench/synthetic/weight_recipe.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/bundle_layout.h"
#include "models/model_file.h"
#include "tests/bench/synthetic/synthetic_forward.h"
#include "tests/models/temp_folder.h"

namespace isotherm::bench {
namespace {

using ::testing::HasSubstr;

SyntheticOptions Small(SyntheticFamily family = SyntheticFamily::kLlama) {
  SyntheticOptions o;
  o.family = family;
  o.num_layers = 3;
  o.model_dim = 256;
  o.ffn_dim = 768;
  o.num_q_heads = 4;
  o.num_kv_heads = 2;
  o.vocab_size = 1024;
  o.predictor_rows = 128;
  if (family == SyntheticFamily::kFalcon) {
    o.mean_activity = 0.05;
    o.skew = 4.345;
  }
  return o;
}

// Distinct tokens of one class, in random order.
std::vector<int32_t> Tokens(const SyntheticOptions& o, int64_t token_class, size_t count) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < o.vocab_size; ++id) {
    if (TokenClass(o, id) == token_class) ids.push_back(id);
  }
  std::mt19937 random(5);
  std::shuffle(ids.begin(), ids.end(), random);
  ids.resize(count);
  return ids;
}

struct Sample {
  explicit Sample(std::vector<double> values) {
    count = static_cast<double>(values.size());
    mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
    double square = 0;
    for (const double v : values) square += (v - mean) * (v - mean);
    error = std::sqrt(square / (count - 1) / count);
  }
  double count = 0, mean = 0;
  double error = 0;  // standard error of the mean
};

class SyntheticModelTest : public testing::Test {
 protected:
  std::string Generate(const SyntheticOptions& options, const std::string& name, int threads = 2) {
    const absl::Status status =
        GenerateSyntheticModel(options, folder_.File(name), {.num_threads = threads});
    EXPECT_TRUE(status.ok()) << status;
    return folder_.File(name);
  }

  // The designed activity holds for tokens of that class: in all, by tenth of the ranks, and neuron
  // by neuron; and the active sets of successive tokens meet as often as independent ones.
  void ExpectDesigned(const SyntheticOptions& o, const std::string& path, int64_t token_class) {
    const std::vector<SyntheticForward::Token> tokens =
        SyntheticForward(path).Run(Tokens(o, token_class, 400));
    const auto ffn = static_cast<size_t>(o.ffn_dim);
    for (int64_t layer = 0; layer < o.num_layers; ++layer) {
      SCOPED_TRACE(testing::Message() << "layer " << layer << " class " << token_class);
      const std::vector<int32_t> ranks = NeuronRanks(o, layer, token_class);
      const auto active = [&](size_t t, size_t n) {
        return tokens[t].layers[static_cast<size_t>(layer)].score[n] >= 0;
      };
      std::vector<double> p;
      for (const int32_t rank : ranks) p.push_back(DesignedActivity(o, rank));

      for (int tenth = -1; tenth < 10; ++tenth) {  // -1: all
        double wanted = 0;
        std::vector<double> fired(tokens.size());
        for (size_t n = 0; n < ffn; ++n) {
          if (tenth >= 0 && ranks[n] * 10 / o.ffn_dim != tenth) continue;
          wanted += p[n];
          for (size_t t = 0; t < tokens.size(); ++t) fired[t] += active(t, n) ? 1 : 0;
        }
        // Less than one event in all says nothing.
        if (wanted * static_cast<double>(tokens.size()) < 20) continue;
        const Sample sample(fired);
        EXPECT_NEAR(sample.mean, wanted, 4.5 * sample.error) << "tenth " << tenth;
      }

      double chi_square = 0, neurons = 0;
      const auto count = static_cast<double>(tokens.size());
      for (size_t n = 0; n < ffn; ++n) {
        if (count * p[n] < 5) continue;
        double fired = 0;
        for (size_t t = 0; t < tokens.size(); ++t) fired += active(t, n) ? 1 : 0;
        chi_square += (fired - count * p[n]) * (fired - count * p[n]) / (count * p[n] * (1 - p[n]));
        ++neurons;
      }
      // Mean 1; deviation sqrt(2 / neurons) for independent neurons, some three times that for
      // ours, which share k directions.
      EXPECT_NEAR(chi_square / neurons, 1, 5 * 3 * std::sqrt(2 / neurons));

      double expected = 0;
      for (const double probability : p) expected += probability * probability;
      std::vector<double> overlaps;
      for (size_t t = 0; t + 1 < tokens.size(); ++t) {
        double overlap = 0;
        for (size_t n = 0; n < ffn; ++n) overlap += active(t, n) && active(t + 1, n) ? 1 : 0;
        overlaps.push_back(overlap);
      }
      const Sample overlap(overlaps);
      // A token is in two overlaps: up to sqrt(2) more error than independent ones have.
      EXPECT_NEAR(overlap.mean, expected, 4.5 * std::sqrt(2.0) * overlap.error);
    }
  }

  static double Disagreement(const std::vector<SyntheticForward::Token>& tokens) {
    double different = 0, all = 0;
    for (const auto& token : tokens) {
      for (const auto& layer : token.layers) {
        for (size_t n = 0; n < layer.gate.size(); ++n, ++all) {
          different += (layer.gate[n] > 0) != (layer.score[n] > 0) ? 1 : 0;
        }
      }
    }
    return different / all;
  }

  TempFolder folder_;
};

TEST_F(SyntheticModelTest, LlamaFiresAsDesigned) {
  const SyntheticOptions o = Small();
  ExpectDesigned(o, Generate(o, "m.gguf"), 0);
}

TEST_F(SyntheticModelTest, FalconFiresAsDesigned) {
  const SyntheticOptions o = Small(SyntheticFamily::kFalcon);
  ExpectDesigned(o, Generate(o, "m.gguf"), 0);
}

TEST_F(SyntheticModelTest, DriftedRanksFireForTheSecondClassOfTokens) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    SyntheticOptions o = Small(family);
    o.drift = 0.2;
    const std::string path = Generate(o, "m.gguf");
    ExpectDesigned(o, path, 0);
    ExpectDesigned(o, path, 1);
  }
}

TEST_F(SyntheticModelTest, WhatIsSampledStaysInItsClass) {
  SyntheticOptions o = Small();
  o.drift = 0.2;
  const SyntheticForward model(Generate(o, "m.gguf"));
  for (const int64_t token_class : {0, 1}) {
    for (const SyntheticForward::Token& token : model.Run(Tokens(o, token_class, 20))) {
      std::vector<double> sum(2), count(2);
      double best = -1e9;
      size_t best_id = 0;
      std::vector<double> inside;
      for (size_t id = 0; id < token.logits.size(); ++id) {
        const auto c = static_cast<size_t>(TokenClass(o, static_cast<int64_t>(id)));
        sum[c] += static_cast<double>(token.logits[id]);
        count[c] += 1;
        if (static_cast<int64_t>(c) == token_class) inside.push_back(token.logits[id]);
        if (token.logits[id] > best) best = token.logits[id], best_id = id;
      }
      const auto own = static_cast<size_t>(token_class);
      EXPECT_EQ(TokenClass(o, static_cast<int64_t>(best_id)), token_class);
      EXPECT_GT(sum[own] / count[own] - sum[1 - own] / count[1 - own], 20);
      // Even enough that sampling at temperature 1 gives a random stream.
      const Sample sample(inside);
      EXPECT_LT(sample.error * std::sqrt(sample.count), 0.8);
    }
  }
}

TEST_F(SyntheticModelTest, PredictorSaysTheGatesSign) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      SyntheticOptions o = Small(family);
      o.dtype = dtype;
      o.num_layers = 2;
      const auto tokens = SyntheticForward(Generate(o, "m.gguf")).Run(Tokens(o, 0, 60));
      // The gate reads z rounded to 11 or 8 bits, the predictor the residual as it is.
      EXPECT_LT(Disagreement(tokens), dtype == DType::kBF16 ? 4e-3 : 5e-4) << Name(dtype);
    }
  }
}

TEST_F(SyntheticModelTest, ResidualHardlyChanges) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    SyntheticOptions o = Small(family);
    o.num_layers = 6;
    const SyntheticForward model(Generate(o, "m.gguf"));
    const std::vector<int32_t> ids = Tokens(o, 0, 30);
    const auto tokens = model.Run(ids);
    for (size_t t = 0; t < ids.size(); ++t) {
      const std::vector<float>& before = model.embedding(ids[t]);
      const std::vector<float>& after = tokens[t].residual;
      double energy = 0, change = 0;
      for (size_t i = 0; i < before.size(); ++i) {
        const auto b = static_cast<double>(before[i]), a = static_cast<double>(after[i]);
        if (static_cast<int64_t>(i) >= kReservedChannels) energy += b * b;
        change += (a - b) * (a - b);
      }
      // Exponents are rounded down, so it is less; and it is something.
      EXPECT_LT(change / energy, 1.5 * kGrowth);
      EXPECT_GT(change / energy, 0.01 * kGrowth);
      // Nothing wrote to the reserved channels.
      ASSERT_EQ(after[0], kConstant);
      for (int64_t i = 0; i < kReservedChannels; ++i) {
        ASSERT_EQ(after[static_cast<size_t>(i)], before[static_cast<size_t>(i)]) << i;
      }
    }
  }
}

TEST_F(SyntheticModelTest, WholeBlockRanksGiveOneFunctionInEveryType) {
  SyntheticOptions o = Small();
  const std::vector<int32_t> ids = Tokens(o, 0, 8);
  const auto wanted = SyntheticForward(Generate(o, "f16.gguf")).Run(ids);
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0}) {
    o.dtype = dtype;
    const auto got = SyntheticForward(Generate(o, "q.gguf")).Run(ids);
    for (size_t t = 0; t < got.size(); ++t) {
      ASSERT_EQ(got[t].residual, wanted[t].residual) << Name(dtype);
      ASSERT_EQ(got[t].layers.back().score, wanted[t].layers.back().score);
    }
  }
}

TEST_F(SyntheticModelTest, OtherSeedsGiveOtherWeights) {
  SyntheticOptions o = Small();
  o.num_layers = 1;
  const std::string first = folder_.Content((Generate(o, "a.gguf"), "a.gguf"));
  o.seed = 2;
  const std::string second = folder_.Content((Generate(o, "b.gguf"), "b.gguf"));
  ASSERT_EQ(first.size(), second.size());
  size_t same = 0;
  for (size_t i = first.size() / 2; i < first.size(); ++i) same += first[i] == second[i] ? 1 : 0;
  EXPECT_LT(same, first.size() * 3 / 8);
}

TEST_F(SyntheticModelTest, ThreadsChangeNoByte) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    SyntheticOptions o = Small(family);
    o.ffn_dim = 3000;  // several pieces a tensor
    o.num_layers = 2;
    o.drift = 0.2;
    o.predictor_rows = 127;
    for (const bool arena : {false, true}) {
      o.arena = arena;
      Generate(o, "one.gguf", 1);
      for (const int threads : {2, 7}) {
        Generate(o, "more.gguf", threads);
        EXPECT_TRUE(folder_.Content("one.gguf") == folder_.Content("more.gguf")) << threads;
        EXPECT_TRUE(folder_.Content("one.profile.gguf") == folder_.Content("more.profile.gguf"));
      }
    }
  }
}

// On tmpfs the file is filled through a mapping, elsewhere by writing.
TEST_F(SyntheticModelTest, AFileInMemoryHasTheSameBytes) {
  std::string memory = "/dev/shm/isotherm_synthetic_XXXXXX";
  ASSERT_NE(::mkdtemp(memory.data()), nullptr) << memory << ": " << std::strerror(errno);
  SyntheticOptions o = Small();
  o.ffn_dim = 3000;
  o.num_layers = 2;
  Generate(o, "disk.gguf");
  for (const bool huge_pages : {false, true}) {
    const absl::Status status =
        GenerateSyntheticModel(o, memory + "/m.gguf", {.num_threads = 3, .huge_pages = huge_pages});
    EXPECT_TRUE(status.ok()) << status;
    std::ifstream file(memory + "/m.gguf", std::ios::binary);
    const std::string got(std::istreambuf_iterator<char>(file), {});
    EXPECT_TRUE(got == folder_.Content("disk.gguf"));
  }
  std::filesystem::remove_all(memory);
}

TEST_F(SyntheticModelTest, BundleOrderedFileHasTheSameWeights) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    for (const DType dtype : {DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
      SyntheticOptions o = Small(family);
      o.model_dim = 288;  // bundles need padding
      o.num_layers = 2;
      o.dtype = dtype;
      const auto plain = *GgufFile::Open(Generate(o, "plain.gguf"));
      o.arena = true;
      const auto arena = *GgufFile::Open(Generate(o, "arena.gguf"));
      const auto read = [](const GgufFile& file, const std::string& name) {
        const GgufTensor* tensor = file.FindTensor(name);
        EXPECT_NE(tensor, nullptr) << name;
        std::vector<std::byte> bytes(static_cast<size_t>(tensor->bytes));
        EXPECT_TRUE(file.Read(*tensor, 0, bytes).ok());
        return bytes;
      };
      std::vector<const char*> parts = {"ffn_gate", "ffn_up", "ffn_down_t"};
      if (family == SyntheticFamily::kFalcon) parts.erase(parts.begin());
      EXPECT_EQ(arena->GetInt("isotherm.bundle_rows").value(), parts.size());
      EXPECT_EQ(arena->GetInt("general.alignment").value(), 4096);
      size_t bundles = 0;
      for (const GgufTensor& tensor : arena->tensors()) {
        if (!tensor.name.ends_with("ffn_bundle.weight")) {
          EXPECT_TRUE(read(*arena, tensor.name) == read(*plain, tensor.name)) << tensor.name;
          continue;
        }
        ++bundles;
        EXPECT_EQ(tensor.offset % 4096, 0);
        const int64_t bundle_bytes = *RowBytes(dtype, tensor.columns());
        EXPECT_EQ(bundle_bytes % 64, 0);
        const std::vector<std::byte> all = read(*arena, tensor.name);
        const std::string layer = tensor.name.substr(0, tensor.name.find("ffn_bundle"));
        const int64_t row_bytes = *RowBytes(dtype, o.model_dim);
        for (size_t part = 0; part < parts.size(); ++part) {
          const std::vector<std::byte> rows = read(*plain, layer + parts[part] + ".weight");
          for (int64_t n = 0; n < o.ffn_dim; ++n) {
            const std::byte* bundle = all.data() + n * bundle_bytes;
            ASSERT_TRUE(std::equal(rows.data() + n * row_bytes, rows.data() + (n + 1) * row_bytes,
                                   bundle + static_cast<int64_t>(part) * row_bytes));
            ASSERT_TRUE(std::all_of(bundle + static_cast<int64_t>(parts.size()) * row_bytes,
                                    bundle + bundle_bytes,
                                    [](std::byte b) { return b == std::byte{0}; }));
          }
        }
      }
      EXPECT_EQ(bundles, 2);
      EXPECT_EQ(arena->tensors().size(), plain->tensors().size() - 2 * (parts.size() - 1));
    }
  }
}

TEST_F(SyntheticModelTest, ProfileIsTheDesign) {
  SyntheticOptions o = Small();
  o.drift = 0.2;
  Generate(o, "m.gguf");
  const auto profiles = ReadActivationProfiles(folder_.File("m.profile.gguf"));
  ASSERT_TRUE(profiles.ok()) << profiles.status();
  ASSERT_EQ(profiles->size(), 2);
  EXPECT_EQ((*profiles)[0].name, "designed");
  EXPECT_EQ((*profiles)[1].name, "drifted");
  for (size_t c = 0; c < 2; ++c) {
    for (int64_t layer = 0; layer < o.num_layers; ++layer) {
      const auto& frequency = (*profiles)[c].frequency[static_cast<size_t>(layer)];
      const std::vector<int32_t> ranks = NeuronRanks(o, layer, static_cast<int64_t>(c));
      ASSERT_EQ(frequency.size(), ranks.size());
      for (size_t n = 0; n < ranks.size(); ++n) {
        ASSERT_EQ(frequency[n], static_cast<float>(DesignedActivity(o, ranks[n])));
      }
    }
  }
}

TEST_F(SyntheticModelTest, LoadsAsAModelInEitherOrder) {
  for (const SyntheticFamily family : {SyntheticFamily::kLlama, SyntheticFamily::kFalcon}) {
    SyntheticOptions o = Small(family);
    o.dtype = DType::kQ8_0;
    const auto plain = ModelFile::Open(Generate(o, "plain.gguf"));
    o.arena = true;
    const auto arena = ModelFile::Open(Generate(o, "arena.gguf"));
    ASSERT_TRUE(plain.ok() && arena.ok()) << plain.status() << arena.status();
    EXPECT_TRUE((*arena)->config().sparse);
    EXPECT_EQ((*arena)->config().activation, Activation::kRelu);
    EXPECT_EQ((*arena)->config().vocab_size, o.vocab_size);
    EXPECT_EQ((*plain)->bundle_file(), nullptr);
    ASSERT_NE((*arena)->bundle_file(), nullptr);
    const BundleLayout& from = (*plain)->bundle_layout();
    const BundleLayout& to = (*arena)->bundle_layout();
    std::vector<std::byte> wanted(static_cast<size_t>(from.bundle_bytes));
    std::vector<std::byte> got(static_cast<size_t>(to.bundle_bytes));
    for (int64_t layer = 0; layer < o.num_layers; ++layer) {
      for (int64_t n = 0; n < o.ffn_dim; n += 37) {
        ASSERT_TRUE((*plain)->PackBundles(layer, n, 1, wanted).ok());
        ASSERT_TRUE((*arena)->PackBundles(layer, n, 1, got).ok());
        EXPECT_TRUE(
            std::equal(wanted.begin(), wanted.begin() + from.rows * from.row_bytes, got.begin()));
      }
    }
    // Other weights must not be taken for the same model.
    o.seed = 2;
    const auto other = ModelFile::Open(Generate(o, "other.gguf"));
    ASSERT_TRUE(other.ok());
    EXPECT_NE((*other)->config().digest, (*arena)->config().digest);
  }
}

TEST_F(SyntheticModelTest, ProgressEndsAtAllBytes) {
  const SyntheticOptions o = Small();
  int64_t last = 0;
  const absl::Status status = GenerateSyntheticModel(
      o, folder_.File("m.gguf"), {.num_threads = 2, .progress = [&](int64_t done, int64_t total) {
                                    EXPECT_GT(done, last);
                                    last = done;
                                    EXPECT_EQ(total, SyntheticModelBytes(o));
                                  }});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(last, SyntheticModelBytes(o));
}

TEST_F(SyntheticModelTest, BadOptionsAreNamed) {
  const auto message = [](auto change) {
    SyntheticOptions o = Small();
    change(o);
    return std::string(Validate(o).message());
  };
  EXPECT_THAT(message([](auto& o) { o.model_dim = 250; }), HasSubstr("dim is 250"));
  EXPECT_THAT(message([](auto& o) { o.model_dim = 64; }), HasSubstr("dim is 64; 128 to"));
  EXPECT_THAT(message([](auto& o) { o.num_q_heads = 3; }), HasSubstr("heads (3)"));
  EXPECT_THAT(message([](auto& o) { o.num_q_heads = 8, o.num_kv_heads = 3; }),
              HasSubstr("kv-heads 3"));
  EXPECT_THAT(message([](auto& o) { o.mean_activity = 0.5; }), HasSubstr("probability 1.4"));
  EXPECT_THAT(message([](auto& o) { o.drift = 1.5; }), HasSubstr("drift is 1.5"));
  EXPECT_THAT(message([](auto& o) { o.vocab_size = 100; }), HasSubstr("vocab is 100"));
  EXPECT_THAT(message([](auto& o) { o.dtype = DType::kQ4_1; }), HasSubstr("type is Q4_1"));
  EXPECT_THAT(message([](auto& o) { o.dtype = DType::kQ8_0, o.predictor_rows = 127; }),
              HasSubstr("multiple of 32 wanted, such as 128"));
  EXPECT_THAT(message([](auto& o) { o.predictor_rows = 32; }), HasSubstr("0 directions"));
  EXPECT_EQ(SyntheticPreset("llama-70b").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(GenerateSyntheticModel(
                              [] {
                                SyntheticOptions o = Small();
                                o.drift = -1;
                                return o;
                              }(),
                              folder_.File("m.gguf"), {})
                              .message()),
              HasSubstr("drift"));
}

}  // namespace
}  // namespace isotherm::bench
