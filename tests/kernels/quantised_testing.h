// Quantised weights for tests of their products, and the products.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/dequantize.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {

// A stored matrix with what is needed to read it.
struct Stored {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  std::vector<uint8_t> bytes = {};
  std::vector<uint16_t> half_scales = {};
  std::vector<float> scales = {};
  std::vector<int32_t> zeros = {}, group_of = {};
  WeightScales f8 = {};
  WeightGroups int4 = {};

  WeightSource source() const {
    WeightSource s{bytes.data(), dtype, rows, cols};
    s.scales = f8;
    if (f8.block_rows > 0) s.scales.data = scales.data();
    if (dtype == DType::kAwq || dtype == DType::kGptq) {
      s.stored_rows = rows;
      s.groups = int4;
      s.groups.scales = half_scales.data();
      s.groups.zeros = zeros.data();
      if (!group_of.empty()) s.groups.group_of = group_of.data();
    }
    return s;
  }
  // The same as fp32.
  std::vector<float> Widened() const {
    std::vector<float> values(static_cast<size_t>(rows * cols));
    DequantizeTile(source(), {0, rows}, {0, cols}, values.data(), cols);
    return values;
  }
};

// A matrix of e4m3: numbers with codes below `codes`, of any sign, and scales of N(0, deviation) for blocks
// of block_rows x block_cols, or none where block_rows is 0.
inline Stored StoredFp8(Random& random, int64_t rows, int64_t cols, int64_t codes, int64_t block_rows,
                        int64_t block_cols, float deviation) {
  Stored m{DType::kF8E4M3, rows, cols};
  for (int64_t i = 0; i < rows * cols; ++i) {
    m.bytes.push_back(static_cast<uint8_t>(random.Below(codes) + 128 * random.Below(2)));
  }
  if (block_rows == 0) return m;
  m.f8.block_rows = block_rows;
  m.f8.block_cols = block_cols;
  m.f8.stride = (cols + block_cols - 1) / block_cols;
  m.scales = random.Normal((rows + block_rows - 1) / block_rows * m.f8.stride, deviation);
  return m;
}

inline PackWeightParams Whole(const WeightSource& source) {
  PackWeightParams pack;
  pack.pieces = {{source, {0, source.rows}}};
  pack.cols = {0, source.cols};
  return pack;
}

// Of a weight without subtrees; one with them gives their sums.
struct ProductForm {
  bool y_fp32 = false;
  int64_t y_padding = 0;
  std::vector<float> bias = {};
};
inline std::vector<float> ComputeProduct(Ops& ops, const PackedWeight& weight, const std::vector<float>& x,
                                         int64_t rows, const ProductForm& form) {
  DeviceMatrix x_m(ops, rows, weight.k(), x, rows % 3);
  if (!weight.subtrees().empty()) {
    const auto size = static_cast<size_t>(rows * weight.n()) * weight.subtrees().size();
    DeviceArray<float> sums(ops, std::vector<float>(size, kNan));
    EXPECT_TRUE(ops.ShardedMatmul({x_m.view(), &weight, sums.data()}).ok());
    return sums.Get();
  }
  DeviceMatrix y(ops, rows, weight.n(), form.y_padding, form.y_fp32);
  DeviceArray<float> bias(ops, form.bias);
  MatmulParams p;
  p.x = x_m.view();
  p.weight = &weight;
  p.bias = form.bias.empty() ? nullptr : bias.data();
  p.y = y.view();
  p.y_fp32 = form.y_fp32;
  const absl::Status status = ops.Matmul(p);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return y.Get();
}

// Row t of x times expert ids[t].
inline absl::StatusOr<std::vector<float>> GroupedProduct(Ops& ops,
                                                         const std::vector<const PackedWeight*>& experts,
                                                         const std::vector<float>& x,
                                                         const std::vector<int32_t>& ids) {
  const auto rows = static_cast<int64_t>(ids.size());
  DeviceMatrix x_m(ops, rows, experts[0]->k(), x), y(ops, rows, experts[0]->n());
  DeviceArray<int32_t> ids_a(ops, ids);
  GroupedMatmulParams p;
  p.x = x_m.view();
  p.experts = experts;
  p.ids = ids_a.data();
  p.top_k = 1;
  p.num_tokens = rows;
  p.y = y.view();
  if (absl::Status status = ops.GroupedMatmul(p); !status.ok()) return status;
  return y.Get();
}

}  // namespace phalanx
