// How rows are quantised for products of e4m3, as gemm_fp8.h says it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/fp8.h"

namespace phalanx::cuda {

inline float FromE4m3(uint8_t code) { return std::bit_cast<float>(FloatBitsFromE4m3(code)); }

// The codes of `v`, which have one scale.
inline std::vector<uint8_t> Quantised(const std::vector<float>& v, float* scale) {
  float largest = 0;
  for (const float x : v) {
    largest = std::isnan(x) || std::isnan(largest) ? std::numeric_limits<float>::quiet_NaN()
                                                   : std::max(largest, std::fabs(x));
  }
  *scale = (largest < 1e-30f ? 1e-30f : largest) / 448.0f;
  const float factor = 1.0f / *scale;
  std::vector<uint8_t> codes;
  for (const float x : v) codes.push_back(E4m3FromFloatBits(std::bit_cast<uint32_t>(x * factor)));
  return codes;
}

}  // namespace phalanx::cuda
