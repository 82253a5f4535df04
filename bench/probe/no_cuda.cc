#include "bench/probe/figure.h"

namespace isotherm::probe {

std::vector<Figure> CudaFigures() { return {}; }

}  // namespace isotherm::probe
