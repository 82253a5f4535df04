#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/check.h"
#include "common/tensor/half.h"

namespace isotherm::reference {

// Logits that a plain F32 implementation of the shipped model gave for one short text: all
// positions of tests/data/smollm2-relu/logits_ids.json, stored as F16.
struct StoredLogits {
  std::vector<int32_t> ids;
  int64_t vocab_size = 0;
  std::vector<float> logits;  // [ids.size(), vocab_size]

  const float* row(size_t position) const {
    return logits.data() + static_cast<int64_t>(position) * vocab_size;
  }
};

// `mode`: "dense" (every neuron) or "predictor". A damaged file ends the test program.
inline StoredLogits ReadStoredLogits(const std::string& folder, const std::string& mode) {
  StoredLogits out;
  std::ifstream ids(folder + "/logits_ids.json");
  out.ids = nlohmann::json::parse(ids).at("ids").get<std::vector<int32_t>>();

  // NumPy's format 1.0: magic, version, length of the header, the header, the values.
  std::ifstream file(folder + "/logits_" + mode + ".npy", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ISOTHERM_CHECK(bytes.size() > 10 && bytes.compare(0, 8, std::string("\x93NUMPY\x01\0", 8)) == 0);
  const size_t start = 10 + static_cast<size_t>(static_cast<uint8_t>(bytes[8])) +
                       256 * static_cast<size_t>(static_cast<uint8_t>(bytes[9]));
  const std::string header = bytes.substr(10, start - 10);
  ISOTHERM_CHECK(header.find("'descr': '<f2'") != std::string::npos &&
                 header.find("'fortran_order': False") != std::string::npos);
  const std::string shape = "'shape': (" + std::to_string(out.ids.size()) + ", ";
  const size_t at = header.find(shape);
  ISOTHERM_CHECK(at != std::string::npos);
  out.vocab_size = std::stoll(header.substr(at + shape.size()));
  const size_t count = out.ids.size() * static_cast<size_t>(out.vocab_size);
  ISOTHERM_CHECK(bytes.size() == start + count * sizeof(uint16_t));
  out.logits.resize(count);
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes.data() + start + i * sizeof(half), sizeof(half));
    out.logits[i] = F16ToF32(half);
  }
  return out;
}

// log of the softmax of `count` logits.
inline std::vector<double> LogSoftmax(const float* logits, int64_t count) {
  double largest = static_cast<double>(logits[0]);
  for (int64_t i = 1; i < count; ++i) largest = std::max(largest, static_cast<double>(logits[i]));
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  std::vector<double> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    out[static_cast<size_t>(i)] = static_cast<double>(logits[i]) - largest - std::log(sum);
  return out;
}

// Kullback-Leibler divergence from q to p in nats, both given as logs of probabilities.
inline double Divergence(const std::vector<double>& log_p, const std::vector<double>& log_q) {
  double sum = 0;
  for (size_t i = 0; i < log_p.size(); ++i) sum += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
  return sum;
}

}  // namespace isotherm::reference
