#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "common/threading/thread_pool.h"
#include "models/convert/conversion_plan.h"
#include "models/gguf/gguf_writer.h"
#include "models/tensor_reader.h"

namespace isotherm {

// Produces the bytes of ConvertedTensors, pieces of one in parallel, in bounded memory. One caller.
class TensorConverter {
 public:
  // `file`: the input, which outlives this. A thread holds about piece_bytes at a time.
  TensorConverter(const GgufFile& file, int num_threads, int64_t piece_bytes = int64_t{8} << 20);

  // Appends the tensor's bytes to `writer`, where it is the next one declared. `advance` gets the
  // bytes of each piece written. DataLoss for values that are no numbers, stored or after the
  // conversion.
  absl::Status Write(const ConvertedTensor& tensor, GgufWriter& writer,
                     const std::function<void(int64_t)>& advance);

 private:
  absl::Status WriteBytes(const ConvertedTensor& tensor, GgufWriter& writer,
                          const std::function<void(int64_t)>& advance);

  // Rows of the output; range.out and stride say where.
  absl::Status ReadRows(const ConvertedTensor& tensor, TensorRange range) const;
  absl::Status ReadBundles(const ConvertedTensor& tensor, TensorRange range) const;

  const GgufFile& file_;
  const int64_t piece_bytes_;
  ThreadPool pool_;
  std::vector<std::byte> buffer_;
};

}  // namespace isotherm
