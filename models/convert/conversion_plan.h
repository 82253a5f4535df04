#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/convert/conversion.h"
#include "models/gguf/gguf_file.h"
#include "models/model_file.h"

namespace isotherm {

// Where a row of each neuron comes from: a row of a matrix or part of one, or a column.
struct NeuronRows {
  const GgufTensor* source = nullptr;
  int64_t first_column = 0;  // part of each row; with num_columns 0: all of it
  int64_t num_columns = 0;
  bool turned = false;  // column n is neuron n's
};

// A tensor of the output and where its bytes come from.
struct ConvertedTensor {
  enum class From {
    kBytes,    // the source's, as they are
    kRows,     // the source's rows, or their part `slice`, in `dtype`
    kColumns,  // the source's columns from slice.first_column on become rows, in `dtype`
    kBundles,  // `parts` of a neuron one after the other, padded, in `dtype`
  };
  std::string name;
  std::vector<int64_t> shape;  // fastest first
  From from = From::kBytes;
  DType dtype = DType::kF32;  // of kRows and kColumns
  const GgufTensor* source = nullptr;
  int64_t bytes = 0;
  NeuronRows slice;               // of kRows and kColumns; its source is `source`
  std::vector<NeuronRows> parts;  // of kBundles
  int64_t part_bytes = 0;         // of kBundles: of each part in the output
};

// What the output will hold. Other layouts are further kinds of ConvertedTensor: the rest of a
// conversion does not ask what they are.
struct ConversionPlan {
  bool powerinfer = false;
  uint32_t alignment = 32;
  std::optional<uint32_t>
      bundle_rows;  // bundle order: kBundleRowsKey and the alignment are written
  std::vector<std::string> copied_keys;  // in the input's order
  std::optional<uint32_t> file_type;     // general.file_type, if it changes
  bool add_quantization_version = false;
  std::optional<Activation> activation;  // kActivationKey
  std::vector<ConvertedTensor> tensors;  // in the input's order
  std::vector<std::string> notes;        // of ConversionReport

  int64_t data_bytes() const;  // of all tensors
};

// The errors of ConvertModel that need no byte of a tensor. `model` outlives the plan.
absl::StatusOr<ConversionPlan> PlanConversion(const ModelFile& model,
                                              const ConversionOptions& options);

}  // namespace isotherm
