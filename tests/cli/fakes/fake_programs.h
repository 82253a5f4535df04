#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "cli/supervise/supervisor.h"

namespace isotherm::cli {

// A folder with programs that are copies of fake_service, and their scripts.
class FakePrograms {
 public:
  FakePrograms() {
    std::string name = (std::filesystem::temp_directory_path() / "isotherm-cli-XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
    ::setenv("FAKE_SCRIPTS", dir_.c_str(), 1);
  }
  ~FakePrograms() { std::filesystem::remove_all(dir_); }

  const std::filesystem::path& dir() const { return dir_; }

  // A supervised service that follows `script`.
  ServiceSpec Add(const std::string& name, const std::string& script, bool drains_first = false) {
    Script(name, script);
    std::filesystem::create_symlink(ISOTHERM_FAKE_SERVICE, dir_ / name);
    return {.name = name,
            .program = (dir_ / name).string(),
            .args = {"--listen", "unix:/" + name},
            .drains_first = drains_first};
  }
  void Script(const std::string& name, const std::string& script) {
    std::ofstream(dir_ / (name + ".script")) << script;
  }
  std::string Read(const std::string& file) const {
    std::stringstream text;
    text << std::ifstream(dir_ / file).rdbuf();
    return text.str();
  }
  int Starts(const std::string& name) const { return std::atoi(Read(name + ".starts").c_str()); }

 private:
  std::filesystem::path dir_;
};

}  // namespace isotherm::cli
