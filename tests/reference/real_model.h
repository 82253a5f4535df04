#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace isotherm::reference {

inline constexpr char kNoRealModel[] =
    "the shipped model is not there: `build/bin/isotherm models build smollm2-relu --out "
    "build/models/smollm2-relu-q8_0.gguf` makes it, or name it with ISOTHERM_TEST_MODEL";

// The shipped model as `./check` builds it, or the file that ISOTHERM_TEST_MODEL names; empty when
// absent, and then a test fails with kNoRealModel.
inline std::string RealModelPath() {
  if (const char* path = std::getenv("ISOTHERM_TEST_MODEL"); path != nullptr && *path != '\0')
    return path;
  const std::string built = std::string(ISOTHERM_BINARY_DIR) + "/models/smollm2-relu-q8_0.gguf";
  return std::filesystem::exists(built) ? built : "";
}

}  // namespace isotherm::reference
