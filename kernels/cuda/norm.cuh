// The end of a norm, in rows.cu and behind the sums of an exchange (all_reduce.cu).
#pragma once

#include "kernels/cuda/fp8_rows.cuh"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {

inline constexpr int kNormThreads = 256;  // a block, which takes a row
inline constexpr int kNormWarps = kNormThreads / kWarpSize;
inline constexpr int kNormSharedBytes = 2 * kNormWarps * 4;

// y's row `out` (NaN unless the residual's `row` is inside), and codes of it. A thread has every
// kNormThreads-th unit of 8 columns, and `sum`, of their squares in rising order by fma; here come the tree
// over a warp, then the warps from the first. Columns alone say which thread has what, so all rows have one
// order. A thread reads what it wrote itself.
template <bool kHalf>
PHX_DEVICE void FinishNorm(const RmsNormArgs& p, int64_t row, bool inside, int64_t out, float sum) {
  auto* const sums = reinterpret_cast<float*>(SharedMemory());
  sum = WarpSum(sum);
  if (ThreadIndex() % kWarpSize == 0) sums[ThreadIndex() / kWarpSize] = sum;
  if (!PHX_FAULT(kNormNoBarrier)) SyncThreads();
  sum = sums[0];
  PHX_UNROLL
  for (int w = 1; w < kNormWarps; ++w) sum = Add(sum, sums[w]);
  const float factor =
      inside ? Div(1.0f, Sqrt(Add(Div(sum, static_cast<float>(p.cols)), p.eps))) : QuietNan();

  const uint16_t* const residual = p.residual + (inside ? row : 0) * p.residual_stride;
  uint16_t* const y = p.y + out * p.y_stride;
  const Fp8RowsOut& to = p.quantised;
  const bool quantises = to.codes != nullptr && out < to.rows;
  uint8_t* const codes = to.codes + (quantises ? out * to.codes_stride : 0);
  const auto cols = static_cast<int>(p.cols);
  const int filled = (cols + kFp8Block - 1) / kFp8Block * kFp8Block;
  uint32_t largest = 0;
  // All lanes of a warp take as many rounds.
  for (int first = 0; first < cols; first += kNormThreads * 8) {
    const int c = first + ThreadIndex() * 8, count = cols - c;
    float v[8], w[8];
    Load8<kHalf>(residual + c, count, v);
    LoadFloats8(p.weight + c, count, w);
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = Mul(Mul(v[i], factor), w[i]);
    Store8<kHalf>(y + c, count, v);
    if (!quantises) continue;
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = i < count ? ToFloat<kHalf>(FromFloat<kHalf>(v[i])) : 0.0f;
    if (to.scaling == Fp8Scaling::kBlocks) {
      StoreBlockCodes(to, out, 0, codes, c, filled, v);
    } else {
      const uint32_t other = Largest8(v);
      largest = other > largest ? other : largest;
    }
  }
  if (!quantises || to.scaling == Fp8Scaling::kBlocks) return;
  largest = LargestOfBlock<kNormThreads>(largest, reinterpret_cast<uint32_t*>(sums + kNormWarps));
  const float scale = ScaleOf(largest);
  for (int c = ThreadIndex() * 8; c < filled; c += kNormThreads * 8) {
    float v[8];
    Load8<kHalf>(y + c, cols - c, v);
    StoreCodes(codes + c, v, Div(1.0f, scale));
  }
  if (ThreadIndex() == 0) to.scales[out] = scale;
}

}  // namespace phalanx::cuda
