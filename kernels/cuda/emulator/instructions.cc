// The instructions that a warp runs together.
#include <cstring>

#include "kernels/cuda/emulator/device_emulated.h"

namespace phalanx::cuda {

namespace {

template <bool kHalf>
void RunMma(void* const* operands) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operand = *static_cast<const MmaOperand*>(operands[lane]);
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, col = t + i / 2 * 8;
      a[row][col] = ToFloat<kHalf>(static_cast<uint16_t>(operand.a[i]));
      a[row][col + 1] = ToFloat<kHalf>(static_cast<uint16_t>(operand.a[i] >> 16));
      d[g + i / 2 * 8][t + i % 2] = operand.d[i];
    }
    b[t][g] = ToFloat<kHalf>(static_cast<uint16_t>(operand.b0));
    b[t + 1][g] = ToFloat<kHalf>(static_cast<uint16_t>(operand.b0 >> 16));
    b[t + 8][g] = ToFloat<kHalf>(static_cast<uint16_t>(operand.b1));
    b[t + 9][g] = ToFloat<kHalf>(static_cast<uint16_t>(operand.b1 >> 16));
  }
  for (int row = 0; row < 16; ++row) {
    float sum[8];
    std::memcpy(sum, d[row], sizeof(sum));
    for (int k = 0; k < 16; ++k) {
      for (int col = 0; col < 8; ++col) sum[col] += a[row][k] * b[k][col];
    }
    std::memcpy(d[row], sum, sizeof(sum));
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operand = *static_cast<const MmaOperand*>(operands[lane]);
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) operand.d[i] = d[g + i / 2 * 8][t + i % 2];
  }
}

template <bool kTransposed>
void LoadMatrices(void* const* operands) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* const from = static_cast<const LdMatrixOperand*>(operands[m * 8 + row])->row;
      simt::CheckFilled(from);
      std::memcpy(matrix[row], from, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, col = 2 * (lane % 4);
      const uint16_t low = kTransposed ? matrix[col][row] : matrix[row][col];
      const uint16_t high = kTransposed ? matrix[col + 1][row] : matrix[row][col + 1];
      static_cast<const LdMatrixOperand*>(operands[lane])->r[m] = uint32_t{low} | uint32_t{high} << 16;
    }
  }
}

}  // namespace

void RunMmaHalf(void* const* operands) { RunMma<true>(operands); }
void RunMmaBf16(void* const* operands) { RunMma<false>(operands); }
void RunLdMatrix(void* const* operands) { LoadMatrices<false>(operands); }
void RunLdMatrixTrans(void* const* operands) { LoadMatrices<true>(operands); }

}  // namespace phalanx::cuda
