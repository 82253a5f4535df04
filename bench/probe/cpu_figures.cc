#include "bench/probe/figure.h"

namespace isotherm::probe {

std::vector<Figure> CpuFigures() {
  return {
      {.name = "cpu_topology",
       .question = "which virtual cores share a physical one, caches, instruction sets, limits",
       .limit_s = 12,
       .run = CpuTopology},
      {.name = "linear_read",
       .question = "DRAM read rate by threads, with and without software prefetch",
       .limit_s = 25,
       .run = LinearRead},
      {.name = "bundle_read",
       .question = "random bundles of 24 and 32 KB by threads, streams and prefetch",
       .limit_s = 25,
       .run = BundleRead},
      {.name = "huge_pages",
       .question = "2 MiB pages for shared memory: how to get them and what they bring",
       .limit_s = 30,
       .run = HugePages},
  };
}

}  // namespace isotherm::probe
