#include "models/convert/conversion.h"

#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/threading/cores.h"
#include "models/convert/conversion_plan.h"
#include "models/convert/tensor_converter.h"
#include "models/gguf/gguf_writer.h"
#include "models/inspect/inspect.h"
#include "models/model_file.h"
#include "models/profile/activation_profile.h"

namespace isotherm {
namespace fs = std::filesystem;
namespace {

absl::Status CheckOutput(const ConversionOptions& options) {
  std::error_code error;
  if (fs::equivalent(options.input_path, options.output_path, error)) {
    return WithExitCode(
        absl::InvalidArgumentError(absl::StrCat(
            "'", options.output_path, "' is the model itself; give the result another name")),
        ExitCode::kUsage);
  }
  const fs::file_status there = fs::status(options.output_path, error);
  if (fs::is_directory(there)) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                            "'", options.output_path, "' is a folder; give a file's name")),
                        ExitCode::kUsage);
  }
  if (fs::exists(there) && !options.replace) {
    return WithExitCode(absl::AlreadyExistsError(absl::StrCat(
                            "'", options.output_path, "' is there already; --force replaces it")),
                        ExitCode::kUsage);
  }
  return absl::OkStatus();
}

// Before hours of work rather than after: a file that replaces one needs room beside it, too.
absl::Status CheckRoom(const std::string& path, int64_t bytes) {
  std::error_code error;
  const fs::path folder = fs::absolute(path, error).parent_path();
  const fs::space_info space = fs::space(folder, error);
  if (error) {
    return WithExitCode(
        absl::NotFoundError(absl::StrCat("cannot write to '", folder.string(),
                                         "': ", error.message(), "; create the folder first")),
        ExitCode::kShortage);
  }
  if (space.available >= static_cast<uintmax_t>(bytes)) return absl::OkStatus();
  return WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                          "the result needs ", FormatBytes(bytes), ", '", folder.string(), "' has ",
                          FormatBytes(static_cast<int64_t>(space.available)),
                          " free; make room or write elsewhere")),
                      ExitCode::kShortage);
}

absl::Status WriteHeader(const ModelFile& model, const ConversionPlan& plan, GgufWriter& writer) {
  for (const std::string& key : plan.copied_keys) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::string value, model.gguf().EncodedValue(key));
    writer.AddEncoded(key, value);
  }
  if (plan.file_type.has_value()) writer.AddUint32("general.file_type", *plan.file_type);
  if (plan.add_quantization_version) writer.AddUint32("general.quantization_version", 2);
  if (plan.activation.has_value()) writer.AddString(kActivationKey, Name(*plan.activation));
  if (plan.bundle_rows.has_value()) {
    writer.AddUint32(kAlignmentKey, plan.alignment);
    writer.AddUint32(kBundleRowsKey, *plan.bundle_rows);
  }
  for (const ConvertedTensor& tensor : plan.tensors) {
    const uint32_t type = tensor.from == ConvertedTensor::From::kBytes
                              ? tensor.source->ggml_type
                              : static_cast<uint32_t>(tensor.dtype);
    writer.DeclareEncoded(tensor.name, type, tensor.shape, tensor.bytes);
  }
  return absl::OkStatus();
}

// Neurons keep their numbers, so that what is known of them stays true. A profile that cannot be
// read is `models verify`'s to report, not a reason to withhold the model.
absl::StatusOr<bool> CopyProfile(const ConversionOptions& options) {
  const auto profiles = ReadActivationProfiles(ProfilePathFor(options.input_path));
  if (!profiles.ok()) return false;
  ISOTHERM_RETURN_IF_ERROR(WriteActivationProfiles(ProfilePathFor(options.output_path), *profiles));
  return true;
}

}  // namespace

absl::StatusOr<ConversionReport> ConvertModel(const ConversionOptions& options) {
  if (options.type.has_value() && *options.type != DType::kF16 && *options.type != DType::kBF16 &&
      *options.type != DType::kQ8_0 && *options.type != DType::kQ4_0) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                            "type: got ", Name(*options.type), ", wanted f16, bf16, q8_0 or q4_0")),
                        ExitCode::kUsage);
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelFile> model,
      ModelFile::Open(options.input_path, options.relu
                                              ? ModelOptions{.activation = Activation::kRelu}
                                              : ModelOptions{}));
  ISOTHERM_RETURN_IF_ERROR(CheckOutput(options));
  ISOTHERM_ASSIGN_OR_RETURN(const ConversionPlan plan, PlanConversion(*model, options));
  const int64_t total = plan.data_bytes();
  ISOTHERM_RETURN_IF_ERROR(CheckRoom(options.output_path, total));
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<GgufWriter> writer,
      GgufWriter::Create(options.output_path, plan.powerinfer, plan.alignment));
  ISOTHERM_RETURN_IF_ERROR(WriteHeader(*model, plan, *writer));
  TensorConverter converter(model->gguf(),
                            options.num_threads > 0 ? options.num_threads : DefaultThreadCount());
  int64_t done = 0;
  for (const ConvertedTensor& tensor : plan.tensors) {
    ISOTHERM_RETURN_IF_ERROR(converter.Write(tensor, *writer, [&](int64_t bytes) {
      done += bytes;
      if (options.progress) options.progress("converting", done, total);
    }));
  }
  ISOTHERM_RETURN_IF_ERROR(writer->Finish([&](const std::string& path) {
    return Verify(path, [&](int64_t checked, int64_t of) {
      if (options.progress) options.progress("checking", checked, of);
    });
  }));
  ConversionReport report{.notes = plan.notes};
  std::error_code error;
  report.output_bytes = static_cast<int64_t>(fs::file_size(options.output_path, error));
  ISOTHERM_ASSIGN_OR_RETURN(report.profile_copied, CopyProfile(options));
  return report;
}

}  // namespace isotherm
