#include "bench/synthetic/row_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "bench/synthetic/activity.h"
#include "bench/synthetic/random_stream.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "common/tensor/half.h"

namespace isotherm::bench {
namespace {

int64_t Padded(int64_t columns) { return RoundUp<int64_t>(columns, kLevelGroup); }

// Channel of a class's constant.
int64_t ConstantChannel(int64_t token_class) { return 32 * token_class; }

// Changes few levels by one until the row's sum is zero, spread over the row.
void MakeSumZero(int8_t* row, int64_t first, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += row[first + i];
  // Odd and no divisor of a row length that is a multiple of 32: visits every element.
  int64_t stride = 61;
  while (std::gcd(stride, count) != 1) stride += 2;
  for (int64_t i = 0; sum != 0; i = (i + stride) % count) {
    int8_t& level = row[first + i];
    const int8_t step = sum > 0 ? -1 : 1;
    if (std::abs(level + step) > 2) continue;
    level = static_cast<int8_t>(level + step);
    sum += step;
  }
}

}  // namespace

SharedDesign::SharedDesign(const SyntheticOptions& o) : options(o), recipe(o) {
  for (int64_t rank = 0; rank < o.ffn_dim; ++rank) {
    drive_by_rank.push_back(Probit(DesignedActivity(o, rank)));
  }
}

RowWriter::RowWriter(const SharedDesign& design)
    : design_(design),
      classes_(NumTokenClasses(design.options)),
      level_bytes_(static_cast<size_t>(
          Padded(std::max(design.options.model_dim, design.options.predictor_rows)))),
      levels_(reinterpret_cast<int8_t*>(level_bytes_.data())),
      basis_stride_(Padded(design.options.model_dim)),
      basis_bytes_(static_cast<size_t>(design.recipe.basis_size * basis_stride_)),
      basis_(reinterpret_cast<int8_t*>(basis_bytes_.data())) {
  ISOTHERM_CHECK(levels_ != nullptr && basis_ != nullptr);
}

void RowWriter::EnterLayer(int64_t layer) {
  if (layer == layer_) return;
  layer_ = layer;
  const SyntheticOptions& o = design_.options;
  for (int64_t j = 0; j < design_.recipe.basis_size; ++j) {
    int8_t* const row = basis_ + j * basis_stride_;
    RandomStream random({o.seed, RandomPurpose::kBasis, layer, 0, j});
    DrawLevels(random.Next(), kBasisLevels, basis_stride_, row);
    std::memset(row, 0, kReservedChannels);
    std::memset(row + o.model_dim, 0, static_cast<size_t>(basis_stride_ - o.model_dim));
    MakeSumZero(row, kReservedChannels, o.model_dim - kReservedChannels);
  }
  ranks_.clear();
  for (int64_t c = 0; c < classes_; ++c) ranks_.push_back(NeuronRanks(o, layer, c));
}

RowWriter::Mix RowWriter::MixOf(int64_t neuron) const {
  RandomStream random({design_.options.seed, RandomPurpose::kMixing, layer_, 0, neuron});
  const auto k = static_cast<uint64_t>(design_.recipe.basis_size);
  Mix mix;
  for (int i = 0; i < 3; ++i) {
    bool fresh = false;
    while (!fresh) {
      mix.basis[i] = static_cast<int64_t>(random.Below(k));
      fresh = std::find(mix.basis, mix.basis + i, mix.basis[i]) == mix.basis + i;
    }
    mix.sign[i] = (random.Next() >> 63) != 0 ? 1 : -1;
  }
  return mix;
}

int64_t RowWriter::MixGate(int64_t neuron, int8_t* out) const {
  const Mix mix = MixOf(neuron);
  MixedRows rows;
  for (size_t i = 0; i < 3; ++i) {
    rows.rows[i] = basis_ + mix.basis[i] * basis_stride_;
    rows.signs[i] = mix.sign[i];
  }
  return MixRows(rows, basis_stride_, out);
}

float RowWriter::Rounded(double value) const {
  const auto narrow = static_cast<float>(value);
  return design_.options.dtype == DType::kBF16 ? Bf16ToF32(F32ToBf16(narrow))
                                               : F16ToF32(F32ToF16(narrow));
}

float RowWriter::Threshold(int64_t neuron, int64_t token_class, int64_t squared_norm) const {
  const WeightRecipe& recipe = design_.recipe;
  const int32_t rank = ranks_[static_cast<size_t>(token_class)][static_cast<size_t>(neuron)];
  const double deviation =
      std::ldexp(std::sqrt(static_cast<double>(squared_norm)), recipe.gate_exponent) *
      recipe.embedding_sigma;
  return Rounded(design_.drive_by_rank[static_cast<size_t>(rank)] * deviation /
                 (kConstant * static_cast<double>(recipe.num_constants)));
}

void RowWriter::DrawRow(TensorKind kind, int64_t layer, int64_t row, int64_t columns) {
  RandomStream random(
      {design_.options.seed, RandomPurpose::kWeights, layer, static_cast<int64_t>(kind), row});
  DrawLevels(random.Next(), kNormalLevels, Padded(columns), levels_);
}

void RowWriter::ClearReserved() { std::memset(levels_, 0, kReservedChannels); }

void RowWriter::Encode(int64_t columns, int exponent, std::byte* out) const {
  EncodeLevels(design_.options.dtype, levels_, columns, exponent, out);
}

void RowWriter::MarkConstant(int64_t column, bool pair) {
  levels_[column] = 1;
  if (pair) levels_[column + 1] = -1;
}

void RowWriter::SetConstant(int64_t column, bool pair, float value, std::byte* row) const {
  const DType dtype = design_.options.dtype;
  const uint16_t bits = dtype == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
  const DTypeInfo& info = Info(dtype);
  std::byte* const at = row + column / info.block_elements * info.block_bytes;
  std::memcpy(at, &bits, 2);  // the element, or the scale of its block
  if (!pair || info.block_elements > 1) return;
  const uint16_t negative = bits ^ 0x8000u;
  std::memcpy(at + 2, &negative, 2);
}

void RowWriter::WriteGate(int64_t layer, int64_t neuron, std::byte* out) {
  EnterLayer(layer);
  const int64_t squared_norm = MixGate(neuron, levels_);
  for (int64_t c = 0; c < classes_; ++c) MarkConstant(ConstantChannel(c), pair());
  Encode(design_.options.model_dim, design_.recipe.gate_exponent, out);
  for (int64_t c = 0; c < classes_; ++c) {
    SetConstant(ConstantChannel(c), pair(), Threshold(neuron, c, squared_norm), out);
  }
}

void RowWriter::WriteFc1(int64_t row, std::byte* out) {
  const WeightRecipe& recipe = design_.recipe;
  const int64_t dim = design_.options.model_dim;
  std::memset(levels_, 0, static_cast<size_t>(Padded(dim)));
  if (row < 2 * recipe.basis_size) {
    const int8_t* const basis = basis_ + row % recipe.basis_size * basis_stride_;
    const int sign = row < recipe.basis_size ? 1 : -1;
    for (int64_t i = 0; i < dim; ++i) levels_[i] = static_cast<int8_t>(sign * basis[i]);
    return Encode(dim, recipe.fc1_exponent, out);
  }
  for (int64_t c = 0; c < classes_; ++c) {
    if (row == recipe.ConstantColumn(design_.options, c)) {
      MarkConstant(ConstantChannel(c), pair());
    }
  }
  Encode(dim, recipe.fc1_constant_exponent, out);
}

void RowWriter::WriteFc2(int64_t neuron, int64_t columns, std::byte* out) {
  const WeightRecipe& recipe = design_.recipe;
  const int64_t squared_norm = MixGate(neuron, levels_);
  const Mix mix = MixOf(neuron);
  std::memset(levels_, 0, static_cast<size_t>(Padded(columns)));
  for (size_t i = 0; i < 3; ++i) {
    levels_[mix.basis[i]] = static_cast<int8_t>(mix.sign[i]);
    levels_[recipe.basis_size + mix.basis[i]] = static_cast<int8_t>(-mix.sign[i]);
  }
  for (int64_t c = 0; c < classes_; ++c) {
    MarkConstant(recipe.ConstantColumn(design_.options, c), /*pair=*/false);
  }
  Encode(columns, recipe.fc2_exponent, out);
  // The gate's threshold, in the score's scale.
  const int shift = recipe.fc1_exponent + recipe.fc2_exponent - recipe.gate_exponent -
                    recipe.fc1_constant_exponent;
  for (int64_t c = 0; c < classes_; ++c) {
    SetConstant(recipe.ConstantColumn(design_.options, c), /*pair=*/false,
                std::ldexp(Threshold(neuron, c, squared_norm), shift), out);
  }
}

void RowWriter::WriteNeuronPart(TensorKind part, int64_t layer, int64_t neuron, std::byte* out) {
  const WeightRecipe& recipe = design_.recipe;
  const int64_t dim = design_.options.model_dim;
  if (part == TensorKind::kGate) return WriteGate(layer, neuron, out);
  DrawRow(part, layer, neuron, dim);
  ClearReserved();
  Encode(dim, part == TensorKind::kUp ? recipe.up_exponent : kWriteExponent, out);
}

void RowWriter::Write(const SyntheticTensor& tensor, int64_t row, std::byte* out) {
  const SyntheticOptions& o = design_.options;
  const WeightRecipe& recipe = design_.recipe;
  switch (tensor.kind) {
    case TensorKind::kOnes:
    case TensorKind::kZeros: {
      const float value = tensor.kind == TensorKind::kOnes ? 1.0f : 0.0f;
      for (int64_t i = 0; i < tensor.columns; ++i) std::memcpy(out + 4 * i, &value, 4);
      return;
    }
    case TensorKind::kEmbedding:
    case TensorKind::kHead: {
      const bool head = tensor.kind == TensorKind::kHead;
      const int64_t channel = ConstantChannel(TokenClass(o, row));
      // A head that knows the class is of use only where there are two.
      const bool constant = !head || classes_ > 1;
      DrawRow(tensor.kind, 0, row, tensor.columns);
      ClearReserved();
      if (constant) MarkConstant(channel, pair());
      Encode(tensor.columns, head ? recipe.head_exponent : kEmbeddingExponent, out);
      if (constant) {
        SetConstant(channel, pair(), static_cast<float>(head ? recipe.head_constant : kConstant),
                    out);
      }
      return;
    }
    case TensorKind::kQuery:
    case TensorKind::kKey:
    case TensorKind::kValue:
    case TensorKind::kQkv: {
      const int64_t kv_dim = o.model_dim / o.num_q_heads * o.num_kv_heads;
      const bool value = tensor.kind == TensorKind::kValue ||
                         (tensor.kind == TensorKind::kQkv && row >= o.model_dim + kv_dim);
      DrawRow(tensor.kind, tensor.layer, row, tensor.columns);
      ClearReserved();
      return Encode(tensor.columns, value ? recipe.value_exponent : recipe.query_exponent, out);
    }
    case TensorKind::kWrite:
      if (row < kReservedChannels) {
        std::memset(levels_, 0, static_cast<size_t>(Padded(tensor.columns)));
      } else {
        DrawRow(tensor.kind, tensor.layer, row, tensor.columns);
      }
      return Encode(tensor.columns, kWriteExponent, out);
    case TensorKind::kGate:
    case TensorKind::kUp:
    case TensorKind::kDown:
      return WriteNeuronPart(tensor.kind, tensor.layer, row, out);
    case TensorKind::kBundle: {
      const int64_t row_bytes = *RowBytes(o.dtype, o.model_dim);
      int64_t used = 0;
      for (const TensorKind part : {TensorKind::kGate, TensorKind::kUp, TensorKind::kDown}) {
        if (part == TensorKind::kUp && o.family == SyntheticFamily::kFalcon) continue;
        WriteNeuronPart(part, tensor.layer, row, out + used);
        used += row_bytes;
      }
      std::memset(out + used, 0, static_cast<size_t>(tensor.row_bytes - used));
      return;
    }
    case TensorKind::kFc1:
      EnterLayer(tensor.layer);
      return WriteFc1(row, out);
    case TensorKind::kFc2:
      EnterLayer(tensor.layer);
      return WriteFc2(row, tensor.columns, out);
  }
}

}  // namespace isotherm::bench
