// Kernels over rows. All are bound by memory: each input is read once, each output written once, by 16-byte
// accesses; at decode they are bound by their launch. A thread takes units of 8 neighbouring columns.
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) Embed(EmbedArgs p) {
  WaitForPrevious();
  const int64_t row = BlockY();
  const int32_t from = p.from_sampled == nullptr ? -1 : p.from_sampled[row];
  const int32_t id = from < 0 ? p.token_ids[row] : p.sampled[from];
  const bool failed = from >= 0 && id == -1;
  const bool inside = id >= 0 && id < p.vocab;
  const uint32_t fill = failed ? 0 : 0x7fff7fff;  // NaN in bf16 and in fp16
  for (int64_t c = (BlockX() * kThreads + ThreadIndex()) * int64_t{8}; c < p.cols;
       c += int64_t{GridX()} * kThreads * 8) {
    Quad q = {{fill, fill, fill, fill}};
    if (inside) q = LoadBits8(p.table + id * p.cols + c, p.cols - c);
    StoreBits8(p.x + row * p.stride + c, p.cols - c, q);
  }
}

// residual + (add + add2), rounded; as fp32.
template <bool kHalf>
PHX_DEVICE void AddUnit(const RmsNormArgs& p, int64_t row, int64_t c, float (&v)[8]) {
  const int64_t count = p.cols - c;
  Load8<kHalf>(p.residual + row * p.residual_stride + c, count, v);
  if (p.add == nullptr) return;
  float a[8];
  LoadFloats8(p.add + row * p.cols + c, count, a);
  if (p.add2 != nullptr) {
    float b[8];
    LoadFloats8(p.add2 + row * p.cols + c, count, b);
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) a[i] = Add(a[i], b[i]);
  }
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = ToFloat<kHalf>(FromFloat<kHalf>(Add(v[i], a[i])));
  Store8<kHalf>(p.residual + row * p.residual_stride + c, count, v);
}

// A block a row of the residual.
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) AddRows(RmsNormArgs p) {
  WaitForPrevious();
  float v[8];
  for (int64_t c = ThreadIndex() * 8; c < p.cols; c += kThreads * 8) AddUnit<kHalf>(p, BlockX(), c, v);
}

// A block a row of y.
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kNormThreads, 1) RmsNorm(RmsNormArgs p) {
  WaitForPrevious();
  const int64_t out = BlockX();
  const int64_t row = p.chosen == nullptr ? out : p.chosen[out];
  const bool inside = row >= 0 && row < p.rows;
  float v[8];
  float sum = 0;
  for (int64_t c = ThreadIndex() * 8; inside && c < p.cols; c += kNormThreads * 8) {
    AddUnit<kHalf>(p, row, c, v);
    PHX_UNROLL
    for (int i = 0; i < 8; ++i) sum = Fma(v[i], v[i], sum);
  }
  FinishNorm<kHalf>(p, row, inside, out, sum);
}

template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) SwiGlu(SwiGluArgs p) {
  WaitForPrevious();
  const int64_t row = BlockY();
  const int64_t c = (BlockX() * int64_t{kThreads} + ThreadIndex()) * 8;
  if (c >= p.cols) return;
  const int64_t count = p.cols - c;
  float gate[8], up[8];
  Load8<kHalf>(p.gate_up + row * p.stride + c, count, gate);
  Load8<kHalf>(p.gate_up + row * p.stride + p.cols + c, count, up);
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) gate[i] = Gated(gate[i], up[i]);
  Store8<kHalf>(p.y + row * p.y_stride + c, count, gate);
}

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) CopyRows(CopyRowsArgs p) {
  WaitForPrevious();
  const int64_t row = BlockY(), head = BlockX();
  for (int64_t c = ThreadIndex() * 8; c < p.cols; c += kThreads * 8) {
    const Quad q = LoadBits8(p.x + row * p.x_stride + head * p.x_pitch + c, p.cols - c);
    StoreBits8(p.y + row * p.y_stride + head * p.y_pitch + c, p.cols - c, q);
  }
}

GridDim Grid(int64_t x, int64_t y) { return {static_cast<unsigned>(x), static_cast<unsigned>(y), 1}; }

}  // namespace

int LaunchEmbed(const EmbedArgs& p, void* stream) {
  if (p.rows == 0 || p.cols == 0) return 0;
  return LaunchKernel("Embed", Embed, Grid(CeilDiv(p.cols, kThreads * 8), p.rows), kThreads, 0, stream, p);
}

int LaunchRmsNorm(const RmsNormArgs& args, bool half, void* stream) {
  RmsNormArgs p = args;
  if (p.cols == 0) return 0;
  if (p.add != nullptr && p.chosen != nullptr && p.rows > 0) {
    const int error = LaunchKernel("AddRows", half ? AddRows<true> : AddRows<false>, Grid(p.rows, 1),
                                   kThreads, 0, stream, p);
    if (error != 0) return error;
    p.add = nullptr;
  }
  if (p.y_rows == 0) return 0;
  return LaunchKernel("RmsNorm", half ? RmsNorm<true> : RmsNorm<false>, Grid(p.y_rows, 1), kNormThreads,
                      kNormSharedBytes, stream, p);
}

int LaunchSwiGlu(const SwiGluArgs& p, bool half, void* stream) {
  if (p.rows == 0 || p.cols == 0) return 0;
  return LaunchKernel("SwiGlu", half ? SwiGlu<true> : SwiGlu<false>,
                      Grid(CeilDiv(p.cols, kThreads * 8), p.rows), kThreads, 0, stream, p);
}

int LaunchCopyRows(const CopyRowsArgs& p, void* stream) {
  if (p.rows == 0 || p.cols == 0 || p.heads == 0) return 0;
  return LaunchKernel("CopyRows", CopyRows, Grid(p.heads, p.rows), kThreads, 0, stream, p);
}

}  // namespace phalanx::cuda
