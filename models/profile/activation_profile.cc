#include "models/profile/activation_profile.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_file.h"
#include "models/gguf/gguf_writer.h"
#include "models/gguf/printable.h"

namespace isotherm {
namespace {

constexpr char kType[] = "activation_profile";
constexpr int64_t kMaxLayers = 1024;
constexpr size_t kMaxProfiles = 64;

std::string TensorName(int64_t layer, absl::string_view profile) {
  return absl::StrCat("blk.", layer, ".activation_frequency.", profile);
}

}  // namespace

std::string ProfilePathFor(absl::string_view model_path) {
  absl::ConsumeSuffix(&model_path, ".gguf");
  return absl::StrCat(model_path, ".profile.gguf");
}

absl::StatusOr<std::vector<ActivationProfile>> ReadActivationProfiles(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string type, file->GetString("general.type"));
  if (type != kType)
    return BadDataError(
        path, absl::StrCat("general.type is '", Printable(type), "'; '", kType, "' is wanted"));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                            file->GetStrings("isotherm.profile.names"));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t num_layers, file->GetInt("isotherm.profile.block_count"));
  if (num_layers < 1 || num_layers > kMaxLayers)
    return BadDataError(path, absl::StrCat("isotherm.profile.block_count is ", num_layers,
                                           "; 1 to ", kMaxLayers, " wanted"));
  std::vector<ActivationProfile> profiles;
  if (names.size() > kMaxProfiles) {
    return BadDataError(path, absl::StrCat("isotherm.profile.names has ", names.size(),
                                           " profiles; at most ", kMaxProfiles));
  }
  for (const std::string& name : names) {
    ActivationProfile profile{.name = name};
    for (int64_t l = 0; l < num_layers; ++l) {
      const std::string tensor_name = TensorName(l, name);
      const GgufTensor* tensor = file->FindTensor(tensor_name);
      if (tensor == nullptr || tensor->ggml_type != static_cast<uint32_t>(DType::kF32) ||
          tensor->rows() != 1) {
        return BadDataError(path, absl::StrCat("tensor ", Printable(tensor_name),
                                               " is missing or not one row of F32"));
      }
      std::vector<float> frequency(static_cast<size_t>(tensor->columns()));
      ISOTHERM_RETURN_IF_ERROR(
          file->Read(*tensor, 0, std::as_writable_bytes(std::span(frequency))));
      for (const float value : frequency) {
        if (!(value >= 0 && value <= 1))
          return BadDataError(
              path, absl::StrCat("tensor ", tensor_name, " has ", value, "; 0 to 1 wanted"));
      }
      if (!profile.frequency.empty() && frequency.size() != profile.frequency.front().size()) {
        return BadDataError(path,
                            absl::StrCat("tensor ", tensor_name, " has ", frequency.size(),
                                         " neurons, layer 0 ", profile.frequency.front().size()));
      }
      profile.frequency.push_back(std::move(frequency));
    }
    profiles.push_back(std::move(profile));
  }
  return profiles;
}

absl::Status WriteActivationProfiles(const std::string& path,
                                     const std::vector<ActivationProfile>& profiles) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer,
                            GgufWriter::Create(path, /*powerinfer=*/false));
  std::vector<std::string> names;
  names.reserve(profiles.size());
  for (const ActivationProfile& profile : profiles) names.push_back(profile.name);
  writer->AddString("general.type", kType);
  writer->AddStrings("isotherm.profile.names", names);
  writer->AddUint32(
      "isotherm.profile.block_count",
      profiles.empty() ? 0 : static_cast<uint32_t>(profiles.front().frequency.size()));
  for (const ActivationProfile& profile : profiles) {
    for (size_t l = 0; l < profile.frequency.size(); ++l) {
      const std::array<int64_t, 1> shape = {static_cast<int64_t>(profile.frequency[l].size())};
      ISOTHERM_RETURN_IF_ERROR(writer->DeclareTensor(
          TensorName(static_cast<int64_t>(l), profile.name), DType::kF32, shape));
    }
  }
  for (const ActivationProfile& profile : profiles) {
    for (const std::vector<float>& frequency : profile.frequency) {
      ISOTHERM_RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(frequency))));
    }
  }
  return writer->Finish();
}

absl::Status CheckProfileFits(const ActivationProfile& profile, int64_t num_layers,
                              int64_t num_neurons) {
  const auto layers = static_cast<int64_t>(profile.frequency.size());
  const int64_t neurons =
      profile.frequency.empty() ? 0 : static_cast<int64_t>(profile.frequency.front().size());
  if (layers == num_layers && neurons == num_neurons) return absl::OkStatus();
  return WithExitCode(absl::DataLossError(absl::StrCat(
                          "profile '", Printable(profile.name), "' is of ", layers, " layers of ",
                          neurons, " neurons, the model has ", num_layers, " of ", num_neurons,
                          "; give this model's profile, or none")),
                      ExitCode::kBadData);
}

}  // namespace isotherm
