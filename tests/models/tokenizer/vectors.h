#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "models/tokenizer/tokenizer_spec.h"
#include "nlohmann/json.hpp"

namespace isotherm::testing_vectors {

// Files of tests/models/tokenizer/data; generate_vectors.py beside them says what they hold.
inline std::string ReadDataFile(const std::string& name) {
  std::ifstream file(ISOTHERM_SOURCE_DIR "/tests/models/tokenizer/data/" + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<std::string> ReadTexts() {
  return nlohmann::json::parse(ReadDataFile("texts.json"));
}

inline TokenizerSpec ReadSpec(const std::string& file, const std::string& model,
                              const std::string& pre) {
  const nlohmann::json json = nlohmann::json::parse(ReadDataFile(file));
  TokenizerSpec spec;
  spec.model = model;
  spec.pre = pre;
  json["tokens"].get_to(spec.tokens);
  json["token_types"].get_to(spec.token_types);
  if (json.contains("merges")) json["merges"].get_to(spec.merges);
  if (json.contains("scores")) json["scores"].get_to(spec.scores);
  return spec;
}

// One row of ids for each text; `width` characters an id.
inline std::vector<std::vector<int32_t>> ReadIds(const std::string& name, size_t width) {
  std::istringstream lines(ReadDataFile(name + ".ids"));
  std::vector<std::vector<int32_t>> rows;
  for (std::string line; std::getline(lines, line);) {
    std::vector<int32_t>& row = rows.emplace_back();
    for (size_t at = 0; at + width <= line.size(); at += width) {
      int32_t id = 0;
      for (size_t k = width; k-- > 0;) id = id * 90 + (line[at + k] - 33);
      row.push_back(id);
    }
  }
  return rows;
}

}  // namespace isotherm::testing_vectors
