#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/common/kernels/test_weights.h"
#include "bench/probe/test_memory.h"
#include "common/kernels/sparse_ffn.h"
#include "common/threading/thread_pool.h"

namespace isotherm {

// Cold layers of a model's geometry in memory like the arena's, as many as fit, with active sets
// and a z whose gates are open or shut as asked.
class ColdLayers {
 public:
  struct Shape {
    std::string name;
    int64_t model_dim = 4096;
    int64_t num_neurons = 11008;
    int bundle_rows = 3;
  };
  struct Options {
    Shape shape;
    DType dtype = DType::kF16;
    int64_t bytes = 0;
    bool huge_pages = false;
    double open_share = 1;  // of neurons whose gate is open
    int64_t max_rows = 1;
  };
  ColdLayers(const Options& options, ThreadPool& pool);

  const std::string& error() const { return error_; }  // empty: all is well
  int64_t num_layers() const { return num_layers_; }
  int64_t bundle_bytes() const { return bundle_bytes_; }
  int64_t row_bytes() const { return row_bytes_; }
  const probe::TestMemory& memory() const { return *memory_; }

  // Bitmaps of `rows` rows, each neuron of each active with probability `share`.
  std::vector<uint64_t> ActiveSet(int64_t rows, double share, uint32_t seed) const;

  // Points params' bundles, z and activation at a layer; the rest is the caller's.
  void Aim(int64_t layer, SparseFfnParams& params) const;

  // Bytes that a call with this active set has to read: gates of all, the other rows where the gate
  // of some row is open.
  double BytesToRead(const std::vector<uint64_t>& active, int64_t rows) const;

  // Compares columns spread over each row with plain double sums.
  bool ResultIsRight(const SparseFfnParams& params) const;

 private:
  // Neurons differ with this period; more would take long to generate.
  static constexpr int64_t kDistinct = 509;

  void MakeDistinct();
  void Fill(ThreadPool& pool);
  const std::byte* BundleOf(int64_t neuron) const {
    return distinct_.data() + neuron % kDistinct * bundle_bytes_;
  }

  const Options options_;
  int64_t row_bytes_ = 0, bundle_bytes_ = 0, num_layers_ = 0;
  std::unique_ptr<probe::TestMemory> memory_;
  std::vector<std::byte> distinct_;
  std::vector<char> open_;   // [kDistinct, max_rows]
  std::vector<uint16_t> z_;  // [max_rows, model_dim], F16 or BF16 as the weights ask
  std::vector<float> wide_z_;
  std::string error_;
};

}  // namespace isotherm
