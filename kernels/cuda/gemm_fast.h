// Products of mode `fast`: weights lie row-major, so that one copy serves the kernels here, cuBLASLt and TMA.
// Launchers as in kernels.h.
#pragma once

#include <cstdint>

namespace phalanx::cuda {

inline constexpr int kFastBlock = 64;   // columns that a row of a weight is padded to
inline constexpr int kSkinnyRows = 16;  // rows of x up to which LaunchFastGemm is the way

// y = x W^T (+ bias), sums in fp32, rounded once: what does not depend on the weight's elements.
struct RowMajorGemmArgs {
  int64_t weight_stride = 0;  // a multiple of the kernel's blocks of columns, at least k
  int n = 0;
  // Columns. Of x exactly these are read; those of the weight up to the next multiple of a block are zero.
  int k = 0;
  const uint16_t* x = nullptr;  // 16-byte aligned, the stride a multiple of 8
  int64_t x_stride = 0;
  int rows = 0;
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
  bool y_fp32 = false;
  // Grouped products, as in GemmArgs.
  const uint16_t* const* expert_weights = nullptr;
  int num_experts = 0;
  const int32_t* counts = nullptr;
  const int32_t* row_map = nullptr;
  const int32_t* y_map = nullptr;
};

// Blocks of kFastBlock columns.
struct FastGemmArgs : RowMajorGemmArgs {
  const uint16_t* weight = nullptr;  // [n, weight_stride], 16-byte aligned
};
int LaunchFastGemm(const FastGemmArgs& args, bool half, void* stream);

// y += bias, of fp32 [rows, n] in place, or into 16 bits.
struct BiasRowsArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* bias = nullptr;
  void* y = nullptr;  // may be x where y_fp32
  int64_t y_stride = 0;
  bool y_fp32 = false;
  int rows = 0, n = 0;
};
int LaunchBiasRows(const BiasRowsArgs& args, bool half, void* stream);

}  // namespace phalanx::cuda
