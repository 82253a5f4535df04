// Input: a GGUF file.
// Checked: a file that opens has every extent inside it, none of two tensors' overlapping; every
// key can be read as what it is and as everything else; a model that opens packs its neurons and
// reads its matrices, or says why not.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/unique_fd.h"
#include "models/gguf/gguf_file.h"
#include "models/model_file.h"
#include "models/profile/activation_profile.h"

namespace isotherm {
namespace {

// No input can make us allocate much: the corpus stays small, and so does what a file may ask for.
constexpr int64_t kMaxBundles = int64_t{4} << 20;

void CheckError(const absl::Status& status) {
  ISOTHERM_CHECK(status.ok() || ExitCodeOf(status) == ExitCode::kBadData);
  ISOTHERM_CHECK(status.message().size() < 8192);
}

void CheckFile(const GgufFile& file) {
  std::vector<std::pair<int64_t, int64_t>> extents;
  for (const GgufTensor& tensor : file.tensors()) {
    ISOTHERM_CHECK(file.FindTensor(tensor.name) == &tensor);
    ISOTHERM_CHECK(tensor.offset >= 0 && tensor.bytes >= 0);
    ISOTHERM_CHECK(tensor.offset <= file.file_bytes() - tensor.bytes);
    extents.emplace_back(tensor.offset, tensor.bytes);
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
    ISOTHERM_CHECK(file.Read(tensor, 0, bytes).ok());
  }
  std::sort(extents.begin(), extents.end());
  for (size_t i = 1; i < extents.size(); ++i) {
    ISOTHERM_CHECK(extents[i - 1].first + extents[i - 1].second <= extents[i].first);
  }
  for (const std::string& key : file.keys()) {
    ISOTHERM_CHECK(!file.Show(key).empty() || file.GetString(key).ok());
    CheckError(file.GetInt(key).status());
    CheckError(file.GetFloat(key).status());
    CheckError(file.GetBool(key).status());
    CheckError(file.GetString(key).status());
    CheckError(file.GetStrings(key).status());
    CheckError(file.GetFloats(key).status());
    CheckError(file.GetInts(key).status());
  }
}

void CheckModel(const ModelFile& model) {
  for (const GgufTensor& tensor : model.gguf().tensors()) {
    if (!DTypeFromGgml(tensor.ggml_type).ok()) continue;
    CheckError(model.ReadMatrix(tensor.name).status());
  }
  const BundleLayout& layout = model.bundle_layout();
  const int64_t count = std::min(layout.num_neurons, kMaxBundles / layout.bundle_bytes);
  std::vector<std::byte> out(static_cast<size_t>(count * layout.bundle_bytes));
  for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
    CheckError(model.PackBundles(layer, layout.num_neurons - count, count, out));
  }
}

void Check(const std::string& path) {
  const auto file = GgufFile::Open(path);
  CheckError(file.status());
  const auto model = ModelFile::Open(path);
  CheckError(model.status());
  CheckError(ReadActivationProfiles(path).status());
  if (file.ok()) CheckFile(**file);
  if (model.ok()) CheckModel(**model);
}

}  // namespace
}  // namespace isotherm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const isotherm::UniqueFd fd(::memfd_create("fuzz_gguf", MFD_CLOEXEC));
  ISOTHERM_CHECK(fd.valid());
  ISOTHERM_CHECK(::pwrite(fd.get(), data, size, 0) == static_cast<ssize_t>(size));
  isotherm::Check(absl::StrCat("/proc/self/fd/", fd.get()));
  return 0;
}
