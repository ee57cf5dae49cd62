// Products of mode `fast` with weights of e4m3: rows of them lie as cuBLASLt reads them, and the kernel here
// reads the same copy. Launchers as in kernels.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/gemm_fast.h"
#include "kernels/cuda/kernels.h"

namespace phalanx::cuda {

// Columns of a block: what one scale reads in the form of blocks, and what parts of a row are filled up to.
inline constexpr int kFp8Block = 128;

// For few rows of x, in blocks of kFp8Block columns.
struct Fp8GemmArgs : RowMajorGemmArgs {
  const uint8_t* weight = nullptr;  // [n, weight_stride] e4m3 without NaN, 16-byte aligned
  Fp8Scaling scaling = Fp8Scaling::kRows;
  // [n], or [ceil(n / 128), scale_stride].
  const float* scales = nullptr;
  int64_t scale_stride = 0;
  int64_t expert_scales = 0;  // grouped: bytes from the begin of an expert's weight to its scales
};
int LaunchFp8Gemm(const Fp8GemmArgs& args, bool half, void* stream);

// A scale s = max(amax, kFp8Tiny) / 448 of the columns that it is for, and codes e4m3(v * (1 / s)), all
// rounded to nearest even; a NaN among them makes NaN of all their codes and of nothing else. Columns that
// fill up a part are zero.
inline constexpr float kFp8Tiny = 1e-30f;
struct Fp8RowsArgs {
  const uint16_t* x = nullptr;  // [rows, ...]; gated: [gate | up], v = silu(gate) * up, rounded to 16 bits
  int64_t x_stride = 0;
  bool gated = false;
  int64_t up = 0;                      // first column of up
  const GemmSegment* parts = nullptr;  // x_begin and x_cols of v, first_block and blocks of codes, in 64s
  int num_parts = 0;
  Fp8RowsOut out;
};
int LaunchFp8Rows(const Fp8RowsArgs& args, bool half, void* stream);

}  // namespace phalanx::cuda
