#pragma once

namespace isotherm::probe {

void ContextSize();
void Registration();
void HostGather();
void HostCopy();
void HbmRead();
void GraphReplay();
void FlagRoundTrip();
void Gemv();
void Gemm();

}  // namespace isotherm::probe
