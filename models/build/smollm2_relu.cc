#include "models/build/smollm2_relu.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/build/sha256.h"
#include "models/gguf/gguf_file.h"
#include "models/gguf/gguf_writer.h"
#include "models/gguf/printable.h"
#include "models/model_config.h"
#include "models/profile/activation_profile.h"
#include "models/quantize/block_codec.h"

namespace isotherm {
namespace {

// A whole tensor decoded to F32, [rows, columns].
struct Dense {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;
};

absl::Status Bad(const GgufFile& file, absl::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat(file.path(), ": ", what)),
                      ExitCode::kBadData);
}

// Runs fn(i) for i in 0 .. count on `num_threads` threads, each taking the next one that is left;
// returns the error of the lowest i.
absl::Status ParallelFor(int64_t count, int num_threads,
                         const std::function<absl::Status(int64_t)>& fn) {
  std::vector<absl::Status> results(static_cast<size_t>(count));
  std::atomic<int64_t> next{0};
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<size_t>(num_threads));
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) results[static_cast<size_t>(i)] = fn(i);
    });
  }
  threads.clear();
  for (const absl::Status& status : results) ISOTHERM_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<Dense> Decode(const GgufFile& file, const std::string& name) {
  const GgufTensor* tensor = file.FindTensor(name);
  if (tensor == nullptr) return Bad(file, absl::StrCat("tensor ", name, " is missing"));
  const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor->ggml_type);
  if (!dtype.ok()) return Bad(file, absl::StrCat("tensor ", name, ": ", dtype.status().message()));
  Dense dense{.rows = tensor->rows(), .columns = tensor->columns()};
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(*dtype, dense.columns));
  std::vector<std::byte> bytes(static_cast<size_t>(tensor->bytes));
  ISOTHERM_RETURN_IF_ERROR(file.Read(*tensor, 0, bytes));
  dense.values.resize(static_cast<size_t>(dense.rows * dense.columns));
  for (int64_t r = 0; r < dense.rows; ++r) {
    ISOTHERM_RETURN_IF_ERROR(DecodeRow(
        *dtype, bytes.data() + r * row_bytes,
        std::span(dense.values)
            .subspan(static_cast<size_t>(r * dense.columns), static_cast<size_t>(dense.columns))));
  }
  return dense;
}

class Builder {
 public:
  Builder(const BuildOptions& options, const GgufFile& base, const GgufFile& adapter)
      : options_(options), base_(base), adapter_(adapter) {
    num_threads_ = options.num_threads > 0
                       ? options.num_threads
                       : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  absl::Status Run() {
    ISOTHERM_ASSIGN_OR_RETURN(config_, ReadModelConfig(base_));
    ISOTHERM_RETURN_IF_ERROR(CheckAdapter());
    ISOTHERM_ASSIGN_OR_RETURN(writer_,
                              GgufWriter::Create(options_.output_path, /*powerinfer=*/true));
    ISOTHERM_RETURN_IF_ERROR(CopyKeys());
    ISOTHERM_RETURN_IF_ERROR(Declare());
    ISOTHERM_RETURN_IF_ERROR(WriteTensors());
    // The model comes last: where it lies, its profile lies too.
    ISOTHERM_RETURN_IF_ERROR(WriteProfiles());
    return writer_->Finish();
  }

 private:
  static constexpr std::array<const char*, 7> kMatrices = {
      "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  static std::string Name(int64_t layer, absl::string_view stem) {
    return absl::StrCat("blk.", layer, ".", stem, ".weight");
  }

  absl::Status CheckAdapter() const {
    for (const auto& [key, wanted] :
         {std::pair("general.architecture", "llama"), std::pair("general.type", "adapter"),
          std::pair("adapter.type", "lora"), std::pair("isotherm.adapter.activation", "relu")}) {
      ISOTHERM_ASSIGN_OR_RETURN(const std::string value, adapter_.GetString(key));
      if (value != wanted) {
        return Bad(adapter_, absl::StrCat("key ", key, " is '", Printable(value), "'; '", wanted,
                                          "' is wanted"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CopyKeys() {
    writer_->AddString("general.architecture", "llama");
    writer_->AddString("general.name", "SmolLM2-135M-Instruct-ReLU");
    writer_->AddString("general.license", "apache-2.0");
    writer_->AddUint32("general.alignment", 32);
    writer_->AddUint32("general.quantization_version", 2);
    for (const char* key : {"llama.context_length", "llama.embedding_length", "llama.block_count",
                            "llama.feed_forward_length", "llama.attention.head_count",
                            "llama.attention.head_count_kv", "llama.rope.dimension_count"}) {
      if (!base_.Has(key)) continue;
      ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, base_.GetInt(key));
      writer_->AddUint32(key, static_cast<uint32_t>(value));
    }
    for (const char* key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}) {
      ISOTHERM_ASSIGN_OR_RETURN(const float value, base_.GetFloat(key));
      writer_->AddFloat(key, value);
    }
    writer_->AddFloat("powerinfer.sparse_threshold", 0.0f);
    for (const std::string& key : base_.keys()) {
      if (!absl::StartsWith(key, "tokenizer.")) continue;
      if (const auto text = base_.GetString(key); text.ok()) {
        writer_->AddString(key, *text);
      } else if (const auto texts = base_.GetStrings(key); texts.ok()) {
        writer_->AddStrings(key, *texts);
      } else if (const auto floats = base_.GetFloats(key); floats.ok()) {
        writer_->AddFloats(key, *floats);
      } else if (const auto ints = base_.GetInts(key); ints.ok()) {
        writer_->AddInts(key, *ints);
      } else if (const auto flag = base_.GetBool(key); flag.ok()) {
        writer_->AddBool(key, *flag);
      } else if (const auto number = base_.GetInt(key); number.ok()) {
        writer_->AddUint32(key, static_cast<uint32_t>(*number));
      } else {
        return Bad(base_,
                   absl::StrCat("key ", key, " has a type that is not expected of a tokenizer"));
      }
    }
    return absl::OkStatus();
  }

  // A tensor that is copied: [columns, rows], rows 0 for any number.
  absl::Status DeclareCopy(const GgufFile& from, const std::string& name, int64_t columns,
                           int64_t rows) {
    const GgufTensor* tensor = from.FindTensor(name);
    if (tensor == nullptr) return Bad(from, absl::StrCat("tensor ", name, " is missing"));
    if (tensor->columns() != columns || (rows != 0 && tensor->rows() != rows)) {
      return Bad(from, absl::StrCat("tensor ", name, " is [", tensor->columns(), ", ",
                                    tensor->rows(), "]; [", columns, ", ",
                                    rows == 0 ? "any" : absl::StrCat(rows), "] is wanted"));
    }
    const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor->ggml_type);
    if (!dtype.ok()) {
      return Bad(from, absl::StrCat("tensor ", name, ": ", dtype.status().message()));
    }
    total_bytes_ += tensor->bytes;
    return writer_->DeclareTensor(
        name, *dtype, std::span(tensor->shape.data(), static_cast<size_t>(tensor->num_dims)));
  }

  absl::Status DeclareMatrix(const std::string& name, int64_t columns, int64_t rows) {
    const std::array<int64_t, 2> shape = {columns, rows};
    ISOTHERM_RETURN_IF_ERROR(writer_->DeclareTensor(name, options_.format, shape));
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(options_.format, columns));
    total_bytes_ += row_bytes * rows;
    return absl::OkStatus();
  }

  absl::Status Declare() {
    const int64_t dim = config_.model_dim, ffn = config_.ffn_dim;
    ISOTHERM_RETURN_IF_ERROR(DeclareCopy(base_, "token_embd.weight", dim, config_.vocab_size));
    ISOTHERM_RETURN_IF_ERROR(DeclareCopy(adapter_, "output_norm.weight", dim, 1));
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      ISOTHERM_RETURN_IF_ERROR(DeclareCopy(adapter_, Name(l, "attn_norm"), dim, 1));
      ISOTHERM_RETURN_IF_ERROR(DeclareCopy(adapter_, Name(l, "ffn_norm"), dim, 1));
      ISOTHERM_RETURN_IF_ERROR(DeclareCopy(adapter_, Name(l, "fc1"), dim, 0));
      const int64_t rank = adapter_.FindTensor(Name(l, "fc1"))->rows();
      ISOTHERM_RETURN_IF_ERROR(DeclareCopy(adapter_, Name(l, "fc2"), rank, ffn));
      for (const char* stem : kMatrices) {
        const GgufTensor* tensor = base_.FindTensor(Name(l, stem));
        if (tensor == nullptr)
          return Bad(base_, absl::StrCat("tensor ", Name(l, stem), " is missing"));
        const bool down = absl::string_view(stem) == "ffn_down";
        ISOTHERM_RETURN_IF_ERROR(DeclareMatrix(down ? Name(l, "ffn_down_t") : Name(l, stem),
                                               down ? tensor->rows() : tensor->columns(),
                                               down ? tensor->columns() : tensor->rows()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Put(std::span<const std::byte> bytes) {
    done_bytes_ += static_cast<int64_t>(bytes.size());
    if (options_.progress) options_.progress("merge", done_bytes_, total_bytes_);
    return writer_->Write(bytes);
  }

  absl::Status CopyRaw(const GgufFile& from, const std::string& name) {
    const GgufTensor& tensor = *from.FindTensor(name);
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
    ISOTHERM_RETURN_IF_ERROR(from.Read(tensor, 0, bytes));
    return Put(bytes);
  }

  // W + lora_b . lora_a; each sum runs over the rank in order, whatever the thread.
  absl::StatusOr<Dense> Merge(int64_t layer, absl::string_view stem) const {
    const std::string name = Name(layer, stem);
    ISOTHERM_ASSIGN_OR_RETURN(Dense weights, Decode(base_, name));
    ISOTHERM_ASSIGN_OR_RETURN(const Dense a, Decode(adapter_, name + ".lora_a"));  // [rank, in]
    ISOTHERM_ASSIGN_OR_RETURN(const Dense b, Decode(adapter_, name + ".lora_b"));  // [out, rank]
    if (a.columns != weights.columns || b.rows != weights.rows || a.rows != b.columns) {
      return Bad(adapter_, absl::StrCat("the update of ", name, " is [", a.columns, ", ", a.rows,
                                        "] x [", b.columns, ", ", b.rows, "]; the base has [",
                                        weights.columns, ", ", weights.rows, "]"));
    }
    std::vector<float> update(static_cast<size_t>(weights.columns));
    for (int64_t r = 0; r < weights.rows; ++r) {
      std::fill(update.begin(), update.end(), 0.0f);
      for (int64_t k = 0; k < a.rows; ++k) {
        const float factor = b.values[static_cast<size_t>(r * b.columns + k)];
        const float* from = a.values.data() + k * a.columns;
        for (int64_t c = 0; c < a.columns; ++c) update[static_cast<size_t>(c)] += factor * from[c];
      }
      float* to = weights.values.data() + r * weights.columns;
      for (int64_t c = 0; c < weights.columns; ++c) to[c] += update[static_cast<size_t>(c)];
    }
    if (stem != "ffn_down") return weights;
    Dense transposed{.rows = weights.columns, .columns = weights.rows};
    transposed.values.resize(weights.values.size());
    for (int64_t r = 0; r < weights.rows; ++r) {
      for (int64_t c = 0; c < weights.columns; ++c) {
        transposed.values[static_cast<size_t>(c * weights.rows + r)] =
            weights.values[static_cast<size_t>(r * weights.columns + c)];
      }
    }
    return transposed;
  }

  absl::Status WriteTensors() {
    ISOTHERM_RETURN_IF_ERROR(CopyRaw(base_, "token_embd.weight"));
    ISOTHERM_RETURN_IF_ERROR(CopyRaw(adapter_, "output_norm.weight"));
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      for (const char* stem : {"attn_norm", "ffn_norm", "fc1", "fc2"}) {
        ISOTHERM_RETURN_IF_ERROR(CopyRaw(adapter_, Name(l, stem)));
      }
      std::array<std::vector<std::byte>, kMatrices.size()> encoded;
      ISOTHERM_RETURN_IF_ERROR(ParallelFor(
          static_cast<int64_t>(kMatrices.size()), num_threads_, [&](int64_t m) -> absl::Status {
            // From the back: the feed-forward matrices are the long ones.
            const auto i = kMatrices.size() - 1 - static_cast<size_t>(m);
            ISOTHERM_ASSIGN_OR_RETURN(const Dense merged, Merge(l, kMatrices[i]));
            ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes,
                                      RowBytes(options_.format, merged.columns));
            encoded[i].resize(static_cast<size_t>(merged.rows * row_bytes));
            for (int64_t r = 0; r < merged.rows; ++r) {
              ISOTHERM_RETURN_IF_ERROR(
                  EncodeRow(options_.format,
                            std::span(merged.values)
                                .subspan(static_cast<size_t>(r * merged.columns),
                                         static_cast<size_t>(merged.columns)),
                            encoded[i].data() + r * row_bytes));
              if (!AllFinite(options_.format, encoded[i].data() + r * row_bytes, merged.columns)) {
                return Bad(adapter_,
                           absl::StrCat("the merged ", Name(l, kMatrices[i]), " row ", r,
                                        " does not fit ", isotherm::Name(options_.format)));
              }
            }
            return absl::OkStatus();
          }));
      for (const std::vector<std::byte>& bytes : encoded) ISOTHERM_RETURN_IF_ERROR(Put(bytes));
    }
    return absl::OkStatus();
  }

  absl::Status WriteProfiles() const {
    std::vector<ActivationProfile> profiles;
    for (const char* name : {"chat", "text"}) {
      ActivationProfile profile{.name = name};
      for (int64_t l = 0; l < config_.num_layers; ++l) {
        const std::string tensor = absl::StrCat("blk.", l, ".activation_frequency.", name);
        ISOTHERM_ASSIGN_OR_RETURN(Dense frequency, Decode(adapter_, tensor));
        if (static_cast<int64_t>(frequency.values.size()) != config_.ffn_dim) {
          return Bad(adapter_, absl::StrCat("tensor ", tensor, " has ", frequency.values.size(),
                                            " values; ", config_.ffn_dim, " are wanted"));
        }
        profile.frequency.push_back(std::move(frequency.values));
      }
      profiles.push_back(std::move(profile));
    }
    return WriteActivationProfiles(ProfilePathFor(options_.output_path), profiles);
  }

  const BuildOptions& options_;
  const GgufFile& base_;
  const GgufFile& adapter_;
  int num_threads_ = 1;
  ModelConfig config_;  // of the base
  std::unique_ptr<GgufWriter> writer_;
  int64_t total_bytes_ = 0, done_bytes_ = 0;
};

}  // namespace

absl::Status BuildSmollm2Relu(const BuildOptions& options) {
  if (options.format != DType::kQ8_0 && options.format != DType::kF16 &&
      options.format != DType::kQ4_0) {
    return absl::InvalidArgumentError(
        absl::StrCat("format ", Name(options.format), "; choose q8_0, f16 or q4_0"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string sha256,
                            Sha256OfFile(options.base_path, [&](int64_t done, int64_t total) {
                              if (options.progress) options.progress("check base", done, total);
                            }));
  if (sha256 != options.base_sha256) {
    return WithExitCode(
        absl::DataLossError(absl::StrCat("'", options.base_path, "' has SHA-256 ", sha256,
                                         "; the adapter was trained on ", options.base_sha256,
                                         ": leave --base out to fetch that file")),
        ExitCode::kBadData);
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> base,
                            GgufFile::Open(options.base_path));
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> adapter,
                            GgufFile::Open(options.adapter_path));
  return Builder(options, *base, *adapter).Run();
}

}  // namespace isotherm
