#include "bench/synthetic/synthetic_model.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "bench/synthetic/activity.h"
#include "bench/synthetic/file_filler.h"
#include "bench/synthetic/row_writer.h"
#include "bench/synthetic/tensor_list.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_writer.h"

namespace isotherm::bench {
namespace {

// Written by one call: stays in the core's L2 between making and writing.
constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr int64_t kPagedBytes = int64_t{64} << 20;  // a multiple of 2 MiB
constexpr uint32_t kArenaAlignment = 4096;

// 256 single bytes, then whole words "<wN>"; no token ends a text.
void AddTokenizer(int64_t vocab_size, GgufWriter& writer) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  int64_t next_letter = 256;
  for (int64_t t = 0; t < vocab_size; ++t) {
    if (t >= 256) {
      tokens.push_back(absl::StrCat("<w", t, ">"));
      types.push_back(4);
      continue;
    }
    const bool plain = (t >= 33 && t <= 126) || (t >= 161 && t <= 172) || t >= 174;
    const int64_t letter = plain ? t : next_letter++;
    std::string text;
    if (letter < 0x80) {
      text.push_back(static_cast<char>(letter));
    } else {
      text.push_back(static_cast<char>(0xc0 | (letter >> 6)));
      text.push_back(static_cast<char>(0x80 | (letter & 0x3f)));
    }
    tokens.push_back(text);
    types.push_back(1);
  }
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", "gpt-2");
  writer.AddStrings("tokenizer.ggml.tokens", tokens);
  writer.AddInts("tokenizer.ggml.token_type", types);
  writer.AddStrings("tokenizer.ggml.merges", std::vector<std::string>());
  writer.AddBool("tokenizer.ggml.add_bos_token", false);
}

void AddKeys(const SyntheticOptions& o, GgufWriter& writer) {
  const bool falcon = o.family == SyntheticFamily::kFalcon;
  const std::string a = falcon ? "falcon" : "llama";
  const auto u32 = [&](absl::string_view key, int64_t value) {
    writer.AddUint32(absl::StrCat(a, ".", key), static_cast<uint32_t>(value));
  };
  writer.AddString("general.architecture", a);
  writer.AddString("general.name", o.name);
  u32("context_length", o.context_length);
  u32("embedding_length", o.model_dim);
  u32("block_count", o.num_layers);
  u32("feed_forward_length", o.ffn_dim);
  u32("attention.head_count", o.num_q_heads);
  u32("attention.head_count_kv", o.num_kv_heads);
  writer.AddFloat(absl::StrCat(a, falcon ? ".attention.layer_norm_epsilon"
                                         : ".attention.layer_norm_rms_epsilon"),
                  1e-5f);
  if (falcon) writer.AddString("falcon.tensor_data_layout", "jploski");
  writer.AddFloat("powerinfer.sparse_threshold", 0.0f);
  if (o.arena) {
    writer.AddUint32("general.alignment", kArenaAlignment);
    writer.AddUint32("isotherm.bundle_rows", falcon ? 2 : 3);
  }
  // All that the weights depend on: two models that differ have headers, so digests, that differ.
  writer.AddUint64("isotherm.synthetic.seed", o.seed);
  writer.AddUint64("isotherm.synthetic.drift_seed", o.drift_seed);
  writer.AddFloat("isotherm.synthetic.drift", static_cast<float>(o.drift));
  writer.AddFloat("isotherm.synthetic.mean_activity", static_cast<float>(o.mean_activity));
  writer.AddFloat("isotherm.synthetic.skew", static_cast<float>(o.skew));
  AddTokenizer(o.vocab_size, writer);
}

// Hands pieces of the tensors to threads and keeps the first failure.
class Generation {
 public:
  Generation(const SharedDesign& design, const std::vector<SyntheticTensor>& tensors,
             const GgufWriter& writer, const GenerateOptions& generate)
      : design_(design),
        tensors_(tensors),
        file_(writer),
        file_bytes_(writer.file_bytes()),
        generate_(generate) {
    for (size_t t = 0; t < tensors.size(); ++t) {
      const int64_t rows = std::max<int64_t>(1, kPieceBytes / tensors[t].row_bytes);
      total_bytes_ += tensors[t].row_bytes * tensors[t].rows;
      for (int64_t first = 0; first < tensors[t].rows; first += rows) {
        pieces_.push_back({t, first, std::min(rows, tensors[t].rows - first)});
      }
    }
  }

  absl::Status Run() {
    if (generate_.huge_pages) OnAllThreads([this] { TakePages(); });
    OnAllThreads([this] { Work(); });
    absl::MutexLock lock(&mu_);
    return status_;
  }

 private:
  struct Piece {
    size_t tensor;
    int64_t first_row, num_rows;
  };

  template <typename Fn>
  void OnAllThreads(const Fn& fn) {
    std::vector<std::thread> threads;
    for (int i = 1; i < generate_.num_threads; ++i) {
      threads.emplace_back([&fn, i] {
        ::pthread_setname_np(::pthread_self(), absl::StrCat("generate-", i).c_str());
        fn();
      });
    }
    fn();
    for (std::thread& thread : threads) thread.join();
  }

  void TakePages() {
    for (int64_t at; (at = paged_.fetch_add(kPagedBytes)) < file_bytes_;) {
      file_.TakeHugePages(at, std::min(kPagedBytes, file_bytes_ - at));
    }
  }

  void Work() {
    RowWriter rows(design_);
    std::vector<std::byte> buffer;
    for (size_t i = next_.fetch_add(1); i < pieces_.size(); i = next_.fetch_add(1)) {
      const Piece& piece = pieces_[i];
      const SyntheticTensor& tensor = tensors_[piece.tensor];
      buffer.resize(static_cast<size_t>(piece.num_rows * tensor.row_bytes));
      for (int64_t r = 0; r < piece.num_rows; ++r) {
        rows.Write(tensor, piece.first_row + r, buffer.data() + r * tensor.row_bytes);
      }
      const absl::Status status =
          file_.Put(piece.tensor, piece.first_row * tensor.row_bytes, buffer);
      absl::MutexLock lock(&mu_);
      done_bytes_ += static_cast<int64_t>(buffer.size());
      if (generate_.progress) generate_.progress(done_bytes_, total_bytes_);
      if (status_.ok()) status_ = status;
      if (!status_.ok()) next_.store(pieces_.size());
    }
  }

  const SharedDesign& design_;
  const std::vector<SyntheticTensor>& tensors_;
  const FileFiller file_;
  const int64_t file_bytes_;
  const GenerateOptions& generate_;
  std::vector<Piece> pieces_;
  int64_t total_bytes_ = 0;
  std::atomic<int64_t> paged_{0};
  std::atomic<size_t> next_{0};
  absl::Mutex mu_;
  int64_t done_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

int64_t SyntheticModelBytes(const SyntheticOptions& options) {
  int64_t bytes = 0;
  for (const SyntheticTensor& tensor : ListTensors(options)) {
    bytes += tensor.rows * tensor.row_bytes;
  }
  return bytes;
}

std::vector<ActivationProfile> DesignedProfiles(const SyntheticOptions& o) {
  std::vector<ActivationProfile> profiles;
  for (int64_t c = 0; c < NumTokenClasses(o); ++c) {
    ActivationProfile profile{.name = c == 0 ? "designed" : "drifted"};
    for (int64_t layer = 0; layer < o.num_layers; ++layer) {
      std::vector<float> frequency;
      for (const int32_t rank : NeuronRanks(o, layer, c)) {
        frequency.push_back(static_cast<float>(DesignedActivity(o, rank)));
      }
      profile.frequency.push_back(std::move(frequency));
    }
    profiles.push_back(std::move(profile));
  }
  return profiles;
}

absl::Status GenerateSyntheticModel(const SyntheticOptions& options, const std::string& path,
                                    const GenerateOptions& generate) {
  ISOTHERM_RETURN_IF_ERROR(Validate(options));
  const std::vector<SyntheticTensor> tensors = ListTensors(options);
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer,
                            options.arena
                                ? GgufWriter::Create(path, /*powerinfer=*/true, kArenaAlignment)
                                : GgufWriter::Create(path, /*powerinfer=*/true));
  AddKeys(options, *writer);
  for (const SyntheticTensor& tensor : tensors) {
    std::vector<int64_t> shape = {tensor.columns};
    if (tensor.kind != TensorKind::kOnes && tensor.kind != TensorKind::kZeros) {
      shape.push_back(tensor.rows);
    }
    ISOTHERM_RETURN_IF_ERROR(writer->DeclareTensor(tensor.name, tensor.dtype, shape));
  }
  ISOTHERM_RETURN_IF_ERROR(writer->Reserve());
  const SharedDesign design(options);
  ISOTHERM_RETURN_IF_ERROR(Generation(design, tensors, *writer, generate).Run());
  ISOTHERM_RETURN_IF_ERROR(writer->Finish());
  return WriteActivationProfiles(ProfilePathFor(path), DesignedProfiles(options));
}

}  // namespace isotherm::bench
