// Random weights of e4m3.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/kernels/ops_testing.h"

namespace phalanx::cuda {

enum class Kind { kNone, kTensor, kRow, kBlock };

struct Stored {
  int64_t rows = 0, cols = 0;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  WeightScales form;

  WeightSource source() const {
    WeightSource s{codes.data(), DType::kF8E4M3, rows, cols};
    s.scales = form;
    if (!scales.empty()) s.scales.data = scales.data();
    return s;
  }
};

inline Stored Make(Random& random, Kind kind, int64_t rows, int64_t cols) {
  Stored m;
  m.rows = rows;
  m.cols = cols;
  for (int64_t i = 0; i < rows * cols; ++i) {
    m.codes.push_back(static_cast<uint8_t>(random.Below(0x7f) + 128 * random.Below(2)));
  }
  if (kind == Kind::kNone) return m;
  m.form.block_rows = kind == Kind::kTensor ? rows : kind == Kind::kRow ? 1 : 128;
  m.form.block_cols = kind == Kind::kBlock ? 128 : cols;
  m.form.stride = (cols + m.form.block_cols - 1) / m.form.block_cols;
  m.scales = random.Normal((rows + m.form.block_rows - 1) / m.form.block_rows * m.form.stride, 0.01f);
  return m;
}

inline PackWeightParams Whole(const WeightSource& source) {
  PackWeightParams pack;
  pack.pieces = {{source, {0, source.rows}}};
  pack.cols = {0, source.cols};
  return pack;
}

}  // namespace phalanx::cuda
