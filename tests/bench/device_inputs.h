// What cuda_bench feeds to a device: shapes of models, and stored weights of the types that devices keep.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/numeric.h"
#include "kernels/ops.h"

namespace phalanx {

struct Model {
  const char* name;
  int64_t hidden, heads, kv_heads, head_dim, rotary_dim, ffn, vocab;
};
inline constexpr Model kModels[] = {{"phi-4-mini", 3072, 24, 8, 128, 96, 8192, 200064},
                                    {"phi-4", 5120, 40, 10, 128, 128, 17920, 100352}};
inline constexpr Model kTinyModels[] = {{"tiny", 128, 4, 2, 32, 24, 192, 500}};

// bf16 numbers of N(0, 1), or as small as keeps sums over `k` of them near one.
inline std::vector<uint16_t> Values(int64_t n, double deviation) {
  std::vector<uint16_t> values(static_cast<size_t>(n));
  uint64_t state = 0x9e3779b97f4a7c15ull;
  for (uint16_t& v : values) {
    double sum = 0;  // of four uniform numbers: near enough to normal
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      sum += static_cast<double>(state >> 40) / static_cast<double>(1 << 24) - 0.5;
    }
    v = Bf16FromFloat(static_cast<float>(sum * std::sqrt(3.0) * deviation));
  }
  return values;
}

// A stored matrix [rows, cols] of a type that devices keep, with all that it points to. FP8 has a scale for
// each row, or for blocks of 128 x 128.
struct Stored {
  Stored(DType dtype, int64_t rows, int64_t cols, bool scaled_rows = false) {
    source.dtype = dtype;
    source.rows = source.stored_rows = rows;
    source.cols = cols;
    const double deviation = 1 / std::sqrt(static_cast<double>(cols));
    if (dtype == DType::kBF16) {
      halves = Values(rows * cols, deviation);
      source.data = halves.data();
      return;
    }
    words.resize(static_cast<size_t>(rows * cols / (dtype == DType::kAwq ? 8 : 4)));
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(i * 2654435761u) & 0x77777777u;
    source.data = words.data();
    if (dtype == DType::kF8E4M3) {
      const int64_t high = scaled_rows ? 1 : 128, wide = scaled_rows ? cols : 128;
      scales.assign(static_cast<size_t>((rows + high - 1) / high * ((cols + wide - 1) / wide)),
                    static_cast<float>(deviation / 16));
      source.scales = {scales.data(), DType::kF32, high, wide, (cols + wide - 1) / wide};
    } else {
      const int64_t groups = (cols + 127) / 128;
      halves.assign(static_cast<size_t>(groups * rows), 0x2000);  // f16, about 0.008
      zeros.assign(static_cast<size_t>(groups * rows / 8), 0x44444444);
      source.groups.scales = halves.data();
      source.groups.zeros = zeros.data();
      source.groups.group_size = 128;
    }
  }
  Stored(const Stored&) = delete;
  Stored& operator=(const Stored&) = delete;

  std::vector<uint16_t> halves;
  std::vector<uint32_t> words;
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  WeightSource source;
};

}  // namespace phalanx
