#include "gpu_worker/cuda/cuda_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/kernels/convert.h"
#include "common/tensor/half.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kColumnStep = 32;  // padded columns are a multiple of it

// Host image of a DeviceMatrix: one or more matrices of one type below each other.
struct Image {
  DeviceMatrix shape;
  std::vector<std::byte> data;
  std::vector<uint16_t> scales;
};

Image EmptyImage(DType dtype, int64_t rows, int64_t columns) {
  Image image;
  image.shape = {.dtype = dtype,
                 .rows = rows,
                 .columns = columns,
                 .padded_columns = RoundUp(columns, kColumnStep)};
  image.data.resize(static_cast<size_t>(rows * image.shape.row_bytes()));
  if (dtype == DType::kQ8_0 || dtype == DType::kQ4_0)
    image.scales.resize(static_cast<size_t>(rows * image.shape.padded_columns / kColumnStep));
  return image;
}

// Rows of `from` to image rows first ...
void PlaceRows(const Matrix& from, int64_t first, Image* image) {
  const DeviceMatrix& shape = image->shape;
  for (int64_t row = 0; row < from.rows; ++row) {
    const std::byte* const source = from.data() + row * from.row_bytes;
    std::byte* const to = image->data.data() + (first + row) * shape.row_bytes();
    if (image->scales.empty()) {
      std::memcpy(to, source, static_cast<size_t>(from.row_bytes));
      continue;
    }
    const DTypeInfo& info = Info(from.dtype);
    const auto bytes = static_cast<size_t>(info.block_bytes - 2);
    for (int64_t b = 0; b < from.columns / kColumnStep; ++b) {
      const std::byte* const block = source + b * info.block_bytes;
      std::memcpy(&image->scales[static_cast<size_t>(
                      (first + row) * (shape.padded_columns / kColumnStep) + b)],
                  block, 2);
      std::memcpy(to + b * static_cast<int64_t>(bytes), block + 2, bytes);
    }
  }
}

// The same values in 8 bits with a scale for each 32 columns, rounded to nearest.
absl::StatusOr<Image> QuantiseTo8(const Matrix& from) {
  Image image = EmptyImage(DType::kQ8_0, from.rows, from.columns);
  const int64_t padded = image.shape.padded_columns;
  std::vector<float> values(static_cast<size_t>(padded));
  for (int64_t row = 0; row < from.rows; ++row) {
    std::fill(values.begin(), values.end(), 0.0f);
    ISOTHERM_RETURN_IF_ERROR(
        DecodeRow(from.dtype, from.data() + row * from.row_bytes, from.row_bytes,
                  std::span(values.data(), static_cast<size_t>(from.columns))));
    for (int64_t b = 0; b < padded / kColumnStep; ++b) {
      const float* const x = values.data() + b * kColumnStep;
      float top = 0;
      for (int64_t i = 0; i < kColumnStep; ++i) top = std::max(top, std::abs(x[i]));
      const uint16_t scale = F32ToF16(top / 127.0f);
      const float step = F16ToF32(scale);
      image.scales[static_cast<size_t>(row * (padded / kColumnStep) + b)] = scale;
      const float inverse = step > 0 ? 1.0f / step : 0.0f;
      auto* const to =
          reinterpret_cast<int8_t*>(image.data.data() + row * padded + b * kColumnStep);
      for (int64_t i = 0; i < kColumnStep; ++i)
        to[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
    }
  }
  return image;
}

// As F32, for matrices whose types differ but that have to be one.
absl::StatusOr<Matrix> Widen(const Matrix& from) {
  Matrix out{
      .dtype = DType::kF32,
      .rows = from.rows,
      .columns = from.columns,
      .row_bytes = from.columns * int64_t{sizeof(float)},
      .storage = AlignedBytes(static_cast<size_t>(from.rows * from.columns) * sizeof(float))};
  for (int64_t row = 0; row < from.rows; ++row) {
    ISOTHERM_RETURN_IF_ERROR(
        DecodeRow(from.dtype, from.data() + row * from.row_bytes, from.row_bytes,
                  std::span(reinterpret_cast<float*>(out.storage.data() + row * out.row_bytes),
                            static_cast<size_t>(from.columns))));
  }
  return out;
}

absl::StatusOr<CudaWeights::HostRows> PinRows(const Matrix& from) {
  CudaWeights::HostRows out{.dtype = from.dtype, .row_bytes = from.row_bytes};
  const int64_t bytes = from.rows * from.row_bytes;
  ISOTHERM_ASSIGN_OR_RETURN(out.memory, PinnedBytes::Make(bytes, "the embedding"));
  std::memcpy(out.memory.as<>(), from.data(), static_cast<size_t>(bytes));
  return out;
}

class Uploader {
 public:
  explicit Uploader(CudaWeights& weights) : weights_(weights) {}

  absl::StatusOr<const float*> Vector(const std::vector<float>& values) {
    ISOTHERM_ASSIGN_OR_RETURN(const void* at, Bytes(values.data(), values.size() * sizeof(float)));
    return static_cast<const float*>(at);
  }

  absl::StatusOr<DeviceMatrix> Put(const Image& image, int64_t* counted) {
    DeviceMatrix out = image.shape;
    // Zeros behind the last row: products take rows in eights.
    const int64_t padding = (RoundUp<int64_t>(out.rows, 8) - out.rows) * out.row_bytes();
    ISOTHERM_ASSIGN_OR_RETURN(
        out.data, Bytes(image.data.data(), image.data.size(), static_cast<size_t>(padding)));
    if (!image.scales.empty()) {
      ISOTHERM_ASSIGN_OR_RETURN(const void* scales,
                                Bytes(image.scales.data(), image.scales.size() * sizeof(uint16_t)));
      out.scales = static_cast<const uint16_t*>(scales);
    }
    *counted += static_cast<int64_t>(image.data.size() + 2 * image.scales.size());
    return out;
  }

  // Below each other, as one matrix.
  absl::StatusOr<DeviceMatrix> Put(std::vector<Matrix> parts, int64_t* counted) {
    const bool one_type = std::all_of(parts.begin(), parts.end(), [&](const Matrix& part) {
      return part.dtype == parts[0].dtype;
    });
    int64_t rows = 0;
    for (Matrix& part : parts) {
      rows += part.rows;
      if (one_type) continue;
      ISOTHERM_ASSIGN_OR_RETURN(part, Widen(part));
    }
    Image image = EmptyImage(parts[0].dtype, rows, parts[0].columns);
    int64_t first = 0;
    for (const Matrix& part : parts) {
      PlaceRows(part, first, &image);
      first += part.rows;
    }
    return Put(image, counted);
  }

 private:
  absl::StatusOr<const void*> Bytes(const void* from, size_t bytes, size_t padding = 0) {
    ISOTHERM_ASSIGN_OR_RETURN(
        DeviceBytes memory,
        DeviceBytes::Make(static_cast<int64_t>(bytes + padding), "a weight matrix"));
    ISOTHERM_CUDA_RETURN_IF_ERROR(
        cudaMemcpy(memory.as<void>(), from, bytes, cudaMemcpyHostToDevice));
    weights_.storage.push_back(std::move(memory));
    return static_cast<const void*>(weights_.storage.back().as<void>());
  }

  CudaWeights& weights_;
};

}  // namespace

absl::StatusOr<CudaWeights> CudaWeights::Load(const ModelFile& model,
                                              const CudaWeightsOptions& options,
                                              const std::function<void(double)>& progress) {
  CudaWeights weights;
  Uploader upload(weights);
  const ModelConfig& config = model.config();
  const auto read = [&](absl::string_view name) { return model.ReadMatrix(name); };
  const auto vector = [&](const std::string& name) -> absl::StatusOr<const float*> {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<float> values, model.ReadVector(name));
    return upload.Vector(values);
  };
  // "stem.weight", and of a layer norm "stem.bias".
  const auto norm = [&](const std::string& stem) -> absl::StatusOr<Norm> {
    Norm out;
    ISOTHERM_ASSIGN_OR_RETURN(out.weight, vector(stem + ".weight"));
    if (config.norm == NormKind::kLayer) {
      ISOTHERM_ASSIGN_OR_RETURN(out.bias, vector(stem + ".bias"));
    }
    return out;
  };
  {
    ISOTHERM_ASSIGN_OR_RETURN(Matrix embedding, read("token_embd.weight"));
    ISOTHERM_ASSIGN_OR_RETURN(weights.embedding, PinRows(embedding));
    std::vector<Matrix> parts;
    if (config.tied_output) {
      parts.push_back(std::move(embedding));
    } else {
      ISOTHERM_ASSIGN_OR_RETURN(Matrix head, read("output.weight"));
      parts.push_back(std::move(head));
    }
    ISOTHERM_ASSIGN_OR_RETURN(weights.head, upload.Put(std::move(parts), &weights.head_bytes));
  }
  if (config.learned_positions) {
    ISOTHERM_ASSIGN_OR_RETURN(const Matrix positions, read("position_embd.weight"));
    ISOTHERM_ASSIGN_OR_RETURN(weights.positions, PinRows(positions));
  }
  ISOTHERM_ASSIGN_OR_RETURN(weights.output_norm, norm("output_norm"));
  std::vector<float> factors;
  if (model.Has("rope_freqs.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(factors, model.ReadVector("rope_freqs.weight"));
  }
  for (int64_t i = 0; i < config.rope_dims / 2; ++i) {
    double frequency =
        std::pow(static_cast<double>(config.rope_freq_base),
                 -2.0 * static_cast<double>(i) / static_cast<double>(config.rope_dims)) /
        static_cast<double>(config.rope_scale);
    if (!factors.empty()) frequency /= static_cast<double>(factors[static_cast<size_t>(i)]);
    weights.rope_frequencies.push_back(frequency);
  }
  for (int64_t l = 0; l < config.num_layers; ++l) {
    Layer layer;
    const auto name = [l](absl::string_view stem) { return ModelFile::LayerTensor(l, stem); };
    const auto stem_of = [l](absl::string_view stem) { return absl::StrCat("blk.", l, ".", stem); };
    ISOTHERM_ASSIGN_OR_RETURN(layer.attention_norm, norm(stem_of(config.attention_norm_tensor)));
    ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, norm(stem_of(config.ffn_norm_tensor)));
    const std::vector<absl::string_view> stems =
        config.fused_qkv ? std::vector<absl::string_view>{"attn_qkv"}
                         : std::vector<absl::string_view>{"attn_q", "attn_k", "attn_v"};
    std::vector<Matrix> qkv;
    std::vector<float> qkv_bias;
    for (const absl::string_view stem : stems) {
      ISOTHERM_ASSIGN_OR_RETURN(Matrix part, read(name(stem)));
      qkv.push_back(std::move(part));
      if (!config.attention_bias) continue;
      ISOTHERM_ASSIGN_OR_RETURN(const std::vector<float> bias,
                                model.ReadVector(ModelFile::LayerBias(l, stem)));
      qkv_bias.insert(qkv_bias.end(), bias.begin(), bias.end());
    }
    if (config.attention_bias) {
      ISOTHERM_ASSIGN_OR_RETURN(layer.qkv_bias, upload.Vector(qkv_bias));
      ISOTHERM_ASSIGN_OR_RETURN(layer.o_bias, vector(ModelFile::LayerBias(l, "attn_output")));
    }
    if (config.ffn_bias) {
      ISOTHERM_ASSIGN_OR_RETURN(layer.up_bias, vector(ModelFile::LayerBias(l, "ffn_up")));
      ISOTHERM_ASSIGN_OR_RETURN(layer.down_bias,
                                vector(ModelFile::LayerBias(l, model.down_tensor())));
    }
    ISOTHERM_ASSIGN_OR_RETURN(layer.qkv, upload.Put(std::move(qkv), &weights.dense_bytes));
    std::vector<Matrix> o(1);
    ISOTHERM_ASSIGN_OR_RETURN(o[0], read(name("attn_output")));
    ISOTHERM_ASSIGN_OR_RETURN(layer.o, upload.Put(std::move(o), &weights.dense_bytes));
    if (config.sparse) {
      for (const auto& [stem, matrix] :
           {std::pair("fc1", &layer.fc1), std::pair("fc2", &layer.fc2)}) {
        std::vector<Matrix> part(1);
        ISOTHERM_ASSIGN_OR_RETURN(part[0], read(name(stem)));
        if (options.stored_predictor || part[0].dtype == DType::kQ8_0 ||
            part[0].dtype == DType::kQ4_0) {
          ISOTHERM_ASSIGN_OR_RETURN(*matrix, upload.Put(std::move(part), &weights.predictor_bytes));
        } else {
          ISOTHERM_ASSIGN_OR_RETURN(const Image image, QuantiseTo8(part[0]));
          ISOTHERM_ASSIGN_OR_RETURN(*matrix, upload.Put(image, &weights.predictor_bytes));
        }
      }
    }
    weights.layers.push_back(layer);
    if (progress) progress(static_cast<double>(l + 1) / static_cast<double>(config.num_layers));
  }
  return weights;
}

}  // namespace isotherm::gpu
