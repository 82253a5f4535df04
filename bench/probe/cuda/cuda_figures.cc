#include "bench/probe/cuda/cuda_figures.h"

#include "bench/probe/figure.h"

namespace isotherm::probe {

namespace {

using Environment = std::vector<std::pair<std::string, std::string>>;

Figure Context(const char* name, Environment environment) {
  return {.name = name,
          .question = "device memory of the process by stage",
          .limit_s = 10,
          .run = ContextSize,
          .environment = std::move(environment)};
}

}  // namespace

std::vector<Figure> CudaFigures() {
  const std::pair<std::string, std::string> lazy = {"CUDA_MODULE_LOADING", "LAZY"};
  const std::pair<std::string, std::string> small = {"PROBE_SMALL_LIMITS", "1"};
  return {
      {.name = "registration",
       .question = "cudaHostRegister of a sealed memfd, of read-only and of file mappings",
       .limit_s = 30,
       .run = Registration},
      Context("context_lazy", {lazy}),
      Context("context_eager", {{"CUDA_MODULE_LOADING", "EAGER"}}),
      Context("context_limits", {lazy, small}),
      Context("context_limits_one_queue", {lazy, small, {"CUDA_DEVICE_MAX_CONNECTIONS", "1"}}),
      {.name = "host_gather",
       .question = "GPU gather of rows from host memory by blocks, with and without CPU readers",
       .limit_s = 30,
       .run = HostGather},
      {.name = "flag_round_trip",
       .question = "GPU to CPU and back through mapped memory, bare and with a layer's payload",
       .limit_s = 12,
       .run = FlagRoundTrip},
      {.name = "graph_replay",
       .question = "graph launch time and gaps between small kernels, by kind of edge",
       .limit_s = 12,
       .run = GraphReplay},
      {.name = "hbm_read", .question = "read rate of device memory", .limit_s = 8, .run = HbmRead},
      {.name = "gemv",
       .question = "matrix times vector by shape, type and warps a row",
       .limit_s = 15,
       .run = Gemv},
      {.name = "host_copy", .question = "PCIe copies each way", .limit_s = 10, .run = HostCopy},
      {.name = "gemm",
       .question = "cuBLAS rates, plain rows and rows inside bundles",
       .limit_s = 15,
       .run = Gemm},
  };
}

}  // namespace isotherm::probe
