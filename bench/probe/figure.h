#pragma once

#include <string>
#include <utility>
#include <vector>

namespace isotherm::probe {

// One question to the machine. It runs in a process of its own, so that a hang, a crash or a broken
// device context costs this answer only.
struct Figure {
  std::string name;
  std::string question;
  int limit_s = 10;  // killed after that; what it printed so far is kept
  // Prints Lines. A wrong result is printed as an error, never as a rate.
  void (*run)() = nullptr;
  std::vector<std::pair<std::string, std::string>> environment;
};

std::vector<Figure> CpuFigures();
std::vector<Figure> CudaFigures();  // none in a build without CUDA

void CpuTopology();
void LinearRead();
void BundleRead();
void HugePages();

}  // namespace isotherm::probe
