#include "common/kernels/sparse_ffn.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <thread>
#include <utility>

#include "common/kernels/sparse_ffn_workspace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/kernels/kernel_test_util.h"
#include "tests/reference/sparse_ffn.h"

namespace isotherm {
namespace {

struct Shape {
  int64_t model_dim = 64;
  int64_t num_neurons = 100;
  int64_t num_rows = 1;
  double density = 0.3;
  int rows = 3;
  int integer_limit = 0;
  Activation activation = Activation::kRelu;
  bool activate_up = false;
  bool bias = false;
  int shift = 0;       // bytes off alignment
  bool slots = false;  // a slot table with some neurons elsewhere
  bool owned = false;
  uint32_t seed = 1;
};

struct Case {
  Case(DType dtype, Shape s) {
    RandomWeights random(s.seed);
    BundleView& b = params.bundles;
    b = {dtype, s.rows, s.model_dim, RowBytes(dtype, s.model_dim).value(), 0};
    b.bundle_bytes = b.row_bytes * s.rows;
    b.num_neurons = s.num_neurons;
    int64_t num_slots = s.num_neurons;
    if (s.slots) {
      // Reversed order, every third neuron elsewhere.
      num_slots = 0;
      for (int64_t id = s.num_neurons; id-- > 0;) {
        slot_of.insert(slot_of.begin(), id % 3 == 0 ? -1 : static_cast<int32_t>(num_slots++));
      }
      b.slot_of = slot_of.data();
    }
    bytes.resize(s.shift + num_slots * b.bundle_bytes);
    for (int64_t i = 0; i < num_slots * s.rows; ++i) {
      random.Fill(dtype, s.model_dim, s.integer_limit, bytes.data() + s.shift + i * b.row_bytes);
    }
    b.data = bytes.data() + s.shift;
    for (int64_t i = 0; i < s.num_rows * s.model_dim; ++i) {
      z.push_back(F32ToF16(random.Value(s.integer_limit)));
    }
    const int64_t words = (s.num_neurons + 63) / 64;
    active.assign(s.num_rows * words, 0);
    owned.assign(words, 0);
    for (int64_t row = 0; row < s.num_rows; ++row) {
      for (int64_t id = 0; id < s.num_neurons; ++id) {
        if (random.Chance(s.density)) active[row * words + id / 64] |= uint64_t{1} << (id % 64);
        if (random.Chance(0.5)) owned[id / 64] |= uint64_t{1} << (id % 64);
      }
      keys.push_back(StepKey(5, 6, 0, row));
    }
    // Bits past the last neuron are garbage that must not be read as ids.
    if (s.num_neurons % 64 != 0) {
      for (int64_t row = 0; row < s.num_rows; ++row) {
        active[row * words + words - 1] |= ~uint64_t{0} << (s.num_neurons % 64);
      }
    }
    partial.assign(s.num_rows * s.model_dim, std::numeric_limits<float>::quiet_NaN());
    hash = {LayerSeed(3, 4), keys.data()};
    params.z_f16 = z.data();
    params.num_rows = s.num_rows;
    params.active = active.data();
    params.owned = s.owned ? owned.data() : nullptr;
    params.last_neuron = s.num_neurons;
    params.activation = s.activation;
    params.activate_up = s.activate_up;
    if (s.bias) {
      for (int64_t id = 0; id < s.num_neurons; ++id) bias.push_back(random.Value(s.integer_limit));
      params.up_bias = bias.data();
    }
    params.partial = partial.data();
    params.hash = &hash;
    params.work_hash = &work_hash;
    workspace = SparseFfnWorkspace::Create({.num_threads = 8,
                                            .max_rows = std::max<int64_t>(1, s.num_rows),
                                            .model_dim = s.model_dim,
                                            .num_neurons = s.num_neurons})
                    .value();
    params.workspace = workspace.get();
  }

  void ExpectNearReference() {
    const reference::SparseFfnResult want = reference::SparseFfn(params);
    // Each of gate, up and the sum over neurons rounds at most this often, relative to magnitudes;
    // SiLU's slope is at most 1.1 and its exp good to a few units in the last place.
    const double roundings = 3.0 * params.bundles.model_dim + params.bundles.num_neurons + 16;
    for (size_t i = 0; i < partial.size(); ++i) {
      ASSERT_NEAR(partial[i], want.partial[i], std::ldexp(want.magnitudes[i] * roundings, -24))
          << "at " << i;
    }
    ASSERT_EQ(work_hash, want.work_hash);
  }
  void ExpectEqualsReference() {
    const reference::SparseFfnResult want = reference::SparseFfn(params);
    for (size_t i = 0; i < partial.size(); ++i) {
      ASSERT_LT(want.magnitudes[i], 1 << 24) << "the inputs do not allow exactness";
      ASSERT_EQ(partial[i], want.partial[i]) << "at " << i;
    }
    ASSERT_EQ(work_hash, want.work_hash);
  }

  std::vector<std::byte> bytes;
  std::vector<int32_t> slot_of;
  std::vector<uint16_t> z;
  std::vector<uint64_t> active, owned, keys;
  std::vector<float> bias, partial;
  NeuronHash hash;
  uint64_t work_hash = 0;
  std::unique_ptr<SparseFfnWorkspace> workspace;
  SparseFfnParams params;
};

class SparseFfnTest : public testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }
  int64_t Dim(int64_t wanted) const {
    const int64_t block = Info(dtype()).block_elements;
    return (wanted + block - 1) / block * block;
  }
  ScopedTarget target_{std::get<0>(GetParam())};
  ThreadPool pool_{{.num_threads = 3, .name = "test"}};
};
INSTANTIATE_TEST_SUITE_P(TargetsAndTypes, SparseFfnTest,
                         testing::Combine(testing::ValuesIn(MachineTargets()),
                                          testing::ValuesIn(KernelTypes())),
                         TargetTypeName);

// What is counted in one call of many rows is what calls of one row and neuron find.
TEST_P(SparseFfnTest, CountsOpenGatesAndBytesReadByNeuron) {
  for (const int64_t num_rows : {1, 2, 7}) {
    Case c(dtype(), {.model_dim = Dim(64), .num_rows = num_rows, .slots = true, .owned = true});
    const int64_t neurons = c.params.bundles.num_neurons, words = (neurons + 63) / 64;
    std::vector<uint32_t> fired(static_cast<size_t>(neurons), 10);  // counts are added to
    c.params.fired = fired.data();
    ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
    const int64_t bytes = CountsOf(*c.workspace).BytesRead(c.params.bundles);
    const int64_t pairs = CountsOf(*c.workspace).open_pairs;

    std::vector<uint32_t> want(static_cast<size_t>(neurons), 10);
    int64_t want_bytes = 0, want_pairs = 0;
    std::vector<uint64_t> one(static_cast<size_t>(words));
    SparseFfnParams single = c.params;
    single.fired = nullptr;
    single.num_rows = 1;
    single.active = one.data();
    for (int64_t n = 0; n < neurons; ++n) {
      const auto word = static_cast<size_t>(n / 64);
      one.assign(one.size(), 0);
      one[word] = uint64_t{1} << (n % 64);
      bool computed = false, open = false;
      for (int64_t row = 0; row < num_rows; ++row) {
        if ((c.active[static_cast<size_t>(row * words) + word] & one[word]) == 0) continue;
        single.z_f16 = c.z.data() + row * c.params.bundles.model_dim;
        ASSERT_TRUE(SparseFfn(single, pool_).ok());
        computed |= CountsOf(*c.workspace).BytesRead(c.params.bundles) > 0;
        if (CountsOf(*c.workspace).open_pairs == 0) continue;
        open = true;
        ++want[static_cast<size_t>(n)];
        ++want_pairs;
      }
      want_bytes += c.params.bundles.row_bytes * (computed ? (open ? 3 : 1) : 0);
    }
    EXPECT_EQ(fired, want) << num_rows;
    EXPECT_EQ(pairs, want_pairs) << num_rows;
    EXPECT_EQ(bytes, want_bytes) << num_rows;
    EXPECT_GT(want_pairs, 0);
  }
}

TEST_P(SparseFfnTest, AgreesWithTheFormulaOverShapesAndRemainders) {
  for (const int64_t dim : {1, 17, 63, 96}) {
    for (const int64_t neurons : {1, 63, 130}) {
      for (const int64_t rows : {1, 2, 3, 9}) {
        for (const int bundle_rows : {2, 3}) {
          Case c(dtype(), {.model_dim = Dim(dim),
                           .num_neurons = neurons,
                           .num_rows = rows,
                           .rows = bundle_rows,
                           .shift = static_cast<int>(dim % 5),
                           .slots = neurons == 63,
                           .owned = dim == 17});
          // Column blocks, pair after pair, and as it chooses.
          const double stream_pairs = neurons == 1 ? -1 : neurons == 63 ? 0 : 100;
          ASSERT_TRUE(c.workspace->SetTuning({.stream_pairs = stream_pairs}).ok());
          ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
          c.ExpectNearReference();
          if (HasFatalFailure()) FAIL() << dim << " " << neurons << " " << rows;
        }
      }
    }
  }
}

TEST_P(SparseFfnTest, ComputesEveryActivationWithAndWithoutAGate) {
  for (const Activation activation : {Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
    for (const int64_t rows : {1, 2, 5}) {
      for (const bool variant : {false, true}) {
        Case gated(dtype(), {.model_dim = 96,
                             .num_rows = rows,
                             .density = 0.8,
                             .activation = activation,
                             .activate_up = variant});
        ASSERT_TRUE(SparseFfn(gated.params, pool_).ok());
        gated.ExpectNearReference();
        Case plain(dtype(), {.model_dim = 96,
                             .num_neurons = 75,
                             .num_rows = rows,
                             .density = 0.8,
                             .rows = 2,
                             .activation = activation,
                             .bias = variant,
                             .slots = variant});
        ASSERT_TRUE(SparseFfn(plain.params, pool_).ok());
        plain.ExpectNearReference();
        if (HasFatalFailure()) FAIL() << Name(activation) << " " << rows << " " << variant;
      }
    }
  }
}

TEST_P(SparseFfnTest, ASkippedNeuronGivesNothingThoughItsBiasIsPositive) {
  for (const int64_t rows : {1, 4}) {
    Case c(dtype(), {.model_dim = 64, .num_rows = rows, .density = 0, .rows = 2, .bias = true});
    std::fill(c.bias.begin(), c.bias.end(), 5.0f);
    ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
    for (int64_t i = 0; i < 64 * rows; ++i) EXPECT_EQ(c.partial[static_cast<size_t>(i)], 0.0f);
    // One active neuron of the first row: its own bias, nobody else's.
    c.active[1] |= uint64_t{1} << 7;
    ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
    c.ExpectNearReference();
    EXPECT_EQ(CountsOf(*c.workspace).open_pairs, 1);
    EXPECT_EQ(CountsOf(*c.workspace).pairs, 1);
  }
}

TEST_P(SparseFfnTest, EverySplitByIdSlotAndOwnerSumsToTheSameIntegers) {
  for (const auto& [rows, variant] : std::initializer_list<std::pair<int64_t, int>>{
           {1, 0}, {2, 0}, {21, 0}, {1, 1}, {5, 1}, {1, 2}, {5, 2}}) {
    const Shape shape{.model_dim = Dim(40),
                      .num_neurons = 150,
                      .num_rows = rows,
                      .rows = variant == 2 ? 2 : 3,
                      .integer_limit = 2,
                      .activate_up = variant == 1,
                      .bias = variant == 2};
    Case whole(dtype(), shape);
    ASSERT_TRUE(SparseFfn(whole.params, pool_).ok());
    whole.ExpectEqualsReference();
    for (int trial = 0; trial < 5; ++trial) {
      // Ids below the cut split by owner between two workers, ids from the cut on to a third.
      RandomWeights random(trial);
      const int64_t cut = random.Int(0, 150);
      Case part(dtype(), shape);
      std::vector<float> sum(part.partial.size(), 0.0f);
      uint64_t hashes = 0;
      const auto add = [&](int64_t first, int64_t last, const uint64_t* owned) {
        part.params.first_neuron = first;
        part.params.last_neuron = last;
        part.params.owned = owned;
        ASSERT_TRUE(SparseFfn(part.params, pool_).ok());
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += part.partial[i];
        hashes += part.work_hash;
      };
      std::vector<uint64_t> others;
      for (const uint64_t word : part.owned) others.push_back(~word);
      add(0, cut, part.owned.data());
      add(0, cut, others.data());
      add(cut, 150, nullptr);
      EXPECT_EQ(sum, whole.partial);
      EXPECT_EQ(hashes, whole.work_hash);
    }
  }
}

TEST_P(SparseFfnTest, ThreadCountDoesNotChangeIntegers) {
  Case c(dtype(), {.model_dim = 64, .num_neurons = 500, .num_rows = 4, .integer_limit = 2});
  for (const int threads : {1, 2, 5, 8}) {
    ThreadPool pool({.num_threads = threads, .spin = std::chrono::microseconds(threads % 2 * 20)});
    ASSERT_TRUE(SparseFfn(c.params, pool).ok());
    c.ExpectEqualsReference();
  }
}

TEST_P(SparseFfnTest, BitsOfARowDoNotDependOnTheBatchOnOneThread) {
  ThreadPool one({.num_threads = 1});
  Case all(dtype(), {.model_dim = 96, .num_neurons = 90, .num_rows = 7});
  ASSERT_TRUE(all.workspace->SetTuning({.stream_pairs = 100}).ok());
  ASSERT_TRUE(SparseFfn(all.params, one).ok());
  const std::vector<float> streamed = all.partial;
  ASSERT_TRUE(all.workspace->SetTuning({.stream_pairs = 0}).ok());
  ASSERT_TRUE(SparseFfn(all.params, one).ok());
  EXPECT_EQ(streamed, all.partial);
  const auto bits = [](const float* values) {
    std::vector<uint32_t> out(96);
    std::memcpy(out.data(), values, out.size() * sizeof(float));
    return out;
  };
  std::vector<float> alone(96);
  for (int64_t row = 0; row < 7; ++row) {
    SparseFfnParams p = all.params;
    NeuronHash hash = {all.hash.layer_seed, all.hash.row_keys + row};
    p.hash = &hash;
    p.z_f16 += row * 96;
    p.active += row * 2;
    p.num_rows = 1;
    p.partial = alone.data();
    ASSERT_TRUE(SparseFfn(p, one).ok());
    EXPECT_EQ(bits(alone.data()), bits(&all.partial[row * 96])) << row;
  }
}

TEST_P(SparseFfnTest, AcceptsZInEveryForm) {
  Case c(dtype(), {.model_dim = 64, .num_rows = 3, .integer_limit = 2});
  std::vector<float> wide;
  std::vector<uint16_t> bf16;
  for (const uint16_t bits : c.z) {
    wide.push_back(F16ToF32(bits));
    bf16.push_back(F32ToBf16(wide.back()));
  }
  c.params.z_f16 = nullptr;
  c.params.z = wide.data();
  ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
  c.ExpectEqualsReference();
  c.params.z = nullptr;
  c.params.z_bf16 = bf16.data();
  ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
  c.ExpectEqualsReference();
}

TEST_P(SparseFfnTest, WritesZeroAndHashesNothingWhereNothingIsActive) {
  for (const int64_t rows : {1, 3}) {
    Case c(dtype(), {.model_dim = 64, .num_neurons = 128, .num_rows = rows, .density = 0});
    ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
    EXPECT_THAT(c.partial, testing::Each(0.0f));
    EXPECT_EQ(c.work_hash, 0u);
  }
  Case none(dtype(), {.model_dim = 64, .num_rows = 0});
  EXPECT_TRUE(SparseFfn(none.params, pool_).ok());
}

TEST_P(SparseFfnTest, TuningDoesNotChangeIntegers) {
  for (const int64_t rows : {1, 5}) {
    Case c(dtype(),
           {.model_dim = Dim(150), .num_neurons = 500, .num_rows = rows, .integer_limit = 1});
    for (const SparseFfnTuning& tuning : std::initializer_list<SparseFfnTuning>{
             {.pass = 1, .phase = 1, .chunk = 1, .tail = 1},
             {.pass = 2, .phase = 3, .chunk = 16, .tail = 1, .fetch = FetchInto::kNone},
             {.pass = 4, .phase = 16, .chunk = 5, .tail = 16, .fetch = FetchInto::kL1},
             {.pass = 4, .phase = 13, .chunk = 16, .fetch = FetchInto::kNonTemporal},
             {.pass = 2, .phase = 8, .chunk = 8, .fetch_lines = 3},
             {.stream_pairs = 0},
             {.phase = 16, .stream_pairs = 100},
             {.fetch_lines = 0}}) {
      ASSERT_TRUE(c.workspace->SetTuning(tuning).ok());
      ASSERT_TRUE(SparseFfn(c.params, pool_).ok());
      c.ExpectEqualsReference();
    }
  }
}

TEST_P(SparseFfnTest, CompletesOnceOnTheCallersThreadWithTheFinalResult) {
  for (const double density : {0.0, 0.3}) {
    for (const int64_t rows : {1, 3}) {
      Case c(dtype(), {.model_dim = 64,
                       .num_neurons = 700,
                       .num_rows = rows,
                       .density = density,
                       .integer_limit = 2});
      int calls = 0;
      std::thread::id thread;
      std::vector<float> partial;
      uint64_t work_hash = 0;
      SparseFfnCounts counts;
      ASSERT_TRUE(SparseFfn(c.params, pool_, [&] {
                    ++calls;
                    thread = std::this_thread::get_id();
                    partial = c.partial;
                    work_hash = c.work_hash;
                    counts = CountsOf(*c.workspace);
                  }).ok());
      EXPECT_EQ(calls, 1);
      EXPECT_EQ(thread, std::this_thread::get_id());
      EXPECT_EQ(partial, c.partial);
      EXPECT_EQ(work_hash, c.work_hash);
      c.ExpectEqualsReference();
      int64_t pairs = 0;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t id = 0; id < 700; ++id) pairs += c.active[row * 11 + id / 64] >> (id % 64) & 1;
      }
      EXPECT_EQ(counts.pairs, pairs);
      EXPECT_LE(counts.open_pairs, pairs);
    }
  }
}

TEST(SparseFfnTuningTest, RefusesWhatIsNotBuilt) {
  Case c(DType::kF16, {});
  EXPECT_TRUE(c.workspace->SetTuning({}).ok());
  EXPECT_FALSE(c.workspace->SetTuning({.pass = 3}).ok());
  EXPECT_FALSE(c.workspace->SetTuning({.phase = SparseFfnTuning::kMaxChunk + 1}).ok());
  EXPECT_FALSE(c.workspace->SetTuning({.chunk = 0}).ok());
  EXPECT_FALSE(c.workspace->SetTuning({.tail = -1}).ok());
  EXPECT_FALSE(c.workspace->SetTuning({.fetch_lines = 65}).ok());
}

TEST(ChunkPlanTest, CoversEveryPositionOnceInChunksThatShrink) {
  for (const SparseFfnTuning& tuning : std::initializer_list<SparseFfnTuning>{
           {}, {.chunk = 16, .tail = 1}, {.chunk = 2, .tail = 5}, {.chunk = 1, .tail = 1}}) {
    for (const int threads : {1, 3, 15}) {
      for (const int64_t num_ids : {0, 1, 7, 60, 331, 1321}) {
        const ChunkPlan plan(num_ids, threads, tuning);
        int64_t at = 0, chunk = 0;
        for (ChunkPlan::Range range; (range = plan.At(chunk)).count > 0; ++chunk) {
          ASSERT_EQ(range.first, at);
          ASSERT_LE(range.count, SparseFfnTuning::kMaxChunk);
          at += range.count;
        }
        EXPECT_EQ(at, num_ids);
        EXPECT_EQ(plan.At(chunk + 1000).count, 0);
      }
    }
  }
  // 15 threads, 330 neurons: most in chunks of 8, a round of 4, a round of 2.
  const ChunkPlan plan(330, 15, {});
  EXPECT_EQ(plan.At(0).count, 8);
  EXPECT_EQ(plan.At(30).count, 4);
  EXPECT_EQ(plan.At(45).count, 2);
  EXPECT_EQ(plan.At(59).count, 2);
  EXPECT_EQ(plan.At(60).count, 0);
}

TEST(SparseFfnNanTest, LetsABrokenInputShow) {
  ThreadPool pool({.num_threads = 2});
  for (const int64_t rows : {1, 4}) {
    Case c(DType::kF16, {.model_dim = 64, .num_rows = rows, .density = 1});
    c.z[5] = 0x7e00;
    ASSERT_TRUE(SparseFfn(c.params, pool).ok());
    EXPECT_TRUE(std::isnan(c.partial[0]));
    if (rows > 1) {
      EXPECT_FALSE(std::isnan(c.partial[64])) << "leaked into another row";
    }
  }
}

TEST(SparseFfnValidationTest, RefusesShapesThatDisagree) {
  const auto refused = [](auto change) {
    Case c(DType::kQ8_0, {.num_rows = 2});
    change(c.params);
    ThreadPool pool({.num_threads = 2});
    return SparseFfn(c.params, pool).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused([](SparseFfnParams&) {}));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.bundles.rows = 4; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.up_bias = p.partial; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) {
    p.bundles.rows = 2;
    p.activate_up = true;
  }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.bundles.row_bytes = 60; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.bundles.bundle_bytes = 150; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.bundles.model_dim = 33; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.bundles.dtype = DType::kQ4_1; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.num_rows = 3; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.last_neuron = 101; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.first_neuron = -1; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.z_f16 = nullptr; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.z = p.partial; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.partial = nullptr; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.work_hash = nullptr; }));
  EXPECT_TRUE(refused([](SparseFfnParams& p) { p.workspace = nullptr; }));
  EXPECT_FALSE(SparseFfnWorkspace::Create({}).ok());
}

TEST(WorkHashTest, OwedHashIsWhatTheKernelCounts) {
  ThreadPool pool({.num_threads = 2});
  Case c(DType::kQ8_0, {.num_neurons = 201, .num_rows = 5, .owned = true});
  c.params.first_neuron = 7;
  c.params.last_neuron = 190;
  ASSERT_TRUE(SparseFfn(c.params, pool).ok());
  EXPECT_EQ(c.work_hash, OwedHash(c.hash, c.active.data(), 5, 201, c.owned.data(), 7, 190));
}

TEST(WorkHashTest, SeesAPairLeftOutDoneTwiceOrForTheWrongRow) {
  const uint64_t k0 = StepKey(1, 2, 0, 0), k1 = StepKey(1, 2, 0, 1);
  EXPECT_EQ(k0 & 1, 1u);
  EXPECT_NE(k0, k1);
  const uint64_t h = NeuronMix(1, 2, 3);
  EXPECT_NE(h, NeuronMix(1, 2, 4));
  EXPECT_NE(h, NeuronMix(1, 3, 3));
  EXPECT_NE(h, NeuronMix(2, 2, 3));
  EXPECT_NE(k0 * h, 0u);
  EXPECT_NE(k0 * h + k0 * h, k0 * h);
  EXPECT_NE(k0 * h, k1 * h);
}

}  // namespace
}  // namespace isotherm
