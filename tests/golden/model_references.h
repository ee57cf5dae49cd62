// The references of tests/golden/models, which make_model_fixtures.py describes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace phalanx {

struct ReferencePrompt {
  std::string name;
  uint32_t rope_mode = 0;  // 1: LongRoPE's long factors
  std::vector<int32_t> ids;
  std::vector<int32_t> greedy;
  std::vector<double> gaps;   // of the greedy tokens: best minus second logit
  std::vector<float> logits;  // [ids.size(), vocabulary]
};

// What quantised weights are, without doubt.
struct ReferenceMatrix {
  std::string checkpoint, tensor;
  int64_t rows = 0, cols = 0;
  std::vector<float> values;  // the first rows
};

struct ModelReference {
  std::string name;
  std::vector<std::string> checkpoints;  // whole paths; all of them must say this
  std::vector<int> degrees;              // tensor-parallel
  std::vector<ReferencePrompt> prompts;
  std::vector<ReferenceMatrix> matrices;
};

// The fp32 tensors of a safetensors file.
inline std::map<std::string, std::vector<float>> ReadFloats(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string file((std::istreambuf_iterator<char>(in)), {});
  uint64_t header_bytes = 0;
  EXPECT_GT(file.size(), sizeof(header_bytes)) << path;
  if (file.size() <= sizeof(header_bytes)) return {};
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const auto header = nlohmann::json::parse(file.substr(sizeof(header_bytes), header_bytes));
  std::map<std::string, std::vector<float>> tensors;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    EXPECT_EQ(tensor["dtype"], "F32") << path << " " << name;
    const auto offsets = tensor["data_offsets"].get<std::vector<size_t>>();
    std::vector<float>& values = tensors[name];
    values.resize((offsets[1] - offsets[0]) / sizeof(float));
    std::memcpy(values.data(), file.data() + sizeof(header_bytes) + header_bytes + offsets[0],
                offsets[1] - offsets[0]);
  }
  return tensors;
}

// All references of a folder, in order of their names.
inline std::vector<ModelReference> ReadModelReferences(const std::filesystem::path& folder) {
  std::vector<ModelReference> references;
  for (const auto& file : std::filesystem::directory_iterator(folder / "references")) {
    if (file.path().extension() != ".json") continue;
    std::ifstream in(file.path());
    const auto json = nlohmann::json::parse(in);
    const auto tensors = ReadFloats(std::filesystem::path(file.path()).replace_extension(".safetensors"));
    ModelReference& reference = references.emplace_back();
    reference.name = file.path().stem().string();
    for (const auto& path : json["checkpoints"]) {
      reference.checkpoints.push_back((folder / path.get<std::string>()).string());
    }
    json["tp"].get_to(reference.degrees);
    for (const auto& prompt : json["prompts"]) {
      ReferencePrompt& to = reference.prompts.emplace_back();
      prompt["name"].get_to(to.name);
      to.rope_mode = prompt["rope"] == "long" ? 1 : 0;
      prompt["prompt_ids"].get_to(to.ids);
      prompt["greedy_ids"].get_to(to.greedy);
      prompt["gaps"].get_to(to.gaps);
      to.logits = tensors.at("logits/" + to.name);
    }
    for (const auto& matrix : json["dequantised"]) {
      ReferenceMatrix& to = reference.matrices.emplace_back();
      to.checkpoint = (folder / matrix["checkpoint"].get<std::string>()).string();
      matrix["tensor"].get_to(to.tensor);
      to.rows = matrix["shape"][0];
      to.cols = matrix["shape"][1];
      to.values = tensors.at("dequantised/" + to.tensor);
    }
  }
  std::sort(references.begin(), references.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return references;
}

}  // namespace phalanx
