#include "common/threading/core_plan.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm {
namespace {

constexpr int kLeastCpus = 4;

std::optional<int> ReadInt(const std::string& path) {
  std::ifstream file(path);
  int value = 0;
  return file >> value ? std::optional<int>(value) : std::nullopt;
}

}  // namespace

std::vector<CpuPlace> ReadCpuPlaces(const std::vector<int>& cpus, const std::string& cpu_root) {
  std::vector<CpuPlace> places;
  for (const int cpu : cpus) {
    const std::string folder = absl::StrCat(cpu_root, "/cpu", cpu, "/topology/");
    const std::optional<int> core = ReadInt(folder + "core_id");
    // Numbers below zero are nobody else's.
    places.push_back({.cpu = cpu,
                      .core = core.value_or(-1 - cpu),
                      .package = ReadInt(folder + "physical_package_id").value_or(0)});
  }
  return places;
}

CorePlan PlanCores(std::vector<CpuPlace> places, int max_cpus) {
  if (static_cast<int>(places.size()) < kLeastCpus || max_cpus < kLeastCpus) return {};
  std::sort(places.begin(), places.end(),
            [](const CpuPlace& a, const CpuPlace& b) { return a.cpu < b.cpu; });
  const CpuPlace free = places.front();
  places.erase(places.begin());
  // How many hardware threads of a core come before this one; the free CPU's sibling is last.
  std::map<std::pair<int, int>, int> taken;
  taken[{free.package, free.core}] = static_cast<int>(places.size());
  std::vector<std::pair<int, int>> order;  // rank within the core, CPU
  order.reserve(places.size());
  for (const CpuPlace& place : places) {
    order.emplace_back(taken[{place.package, place.core}]++, place.cpu);
  }
  std::sort(order.begin(), order.end());
  order.resize(std::min(order.size(), static_cast<size_t>(max_cpus - 1)));
  CorePlan plan{.others = {free.cpu}};
  for (const auto& [rank, cpu] : order) plan.compute.push_back(cpu);
  return plan;
}

}  // namespace isotherm
