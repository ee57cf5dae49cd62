// The header of a safetensors file: names, types and shapes.
// source: https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

struct SafetensorsTensor {
  std::string name;
  std::string dtype = {};  // "BF16", "F8_E4M3", ...
  int64_t elements = 0;
  int64_t bytes = 0;
};

// NotFound, or InvalidArgument naming file, tensor and value: no such format, a tensor whose bytes are not
// what its shape takes or reach past the file's end.
absl::StatusOr<std::vector<SafetensorsTensor>> ReadSafetensorsHeader(const std::string& path);

}  // namespace phalanx
