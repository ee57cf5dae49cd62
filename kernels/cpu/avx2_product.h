// The AVX2 micro-kernel: MR rows times NP panels of 16 outputs, one chain of fused multiply-adds in rising k
// for each output. For files compiled with -mavx2 -mfma; everything has internal linkage.
//
// Packed rows: a tile of MR rows holds, for each 8 k, the 8 values of row 0, of row 1, ... (k is padded to 8;
// what is beyond the depth is never read).
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

struct Panel16 {
  __m256 low, high;  // outputs 0..7 and 8..15
};

inline Panel16 LoadPanel(const float* w) { return {_mm256_loadu_ps(w), _mm256_loadu_ps(w + 8)}; }
inline Panel16 LoadPanel(const uint16_t* w) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(q, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(q, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}

template <int MR, int NP, typename W>
[[gnu::always_inline]] inline void Step(const float* a, const W* w, int64_t panel_stride,
                                        __m256 (&c)[MR][NP][2]) {
#pragma GCC unroll 4
  for (int p = 0; p < NP; ++p) {
    const Panel16 panel = LoadPanel(w + p * panel_stride);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const __m256 x = _mm256_broadcast_ss(a + i * 8);
      c[i][p][0] = _mm256_fmadd_ps(x, panel.low, c[i][p][0]);
      c[i][p][1] = _mm256_fmadd_ps(x, panel.high, c[i][p][1]);
    }
  }
}

template <int MR, int NP, typename W>
void MicroProduct(const float* a, const W* w, int64_t panel_stride, int64_t depth, float* c, int64_t c_stride,
                  bool accumulate) {
  __m256 sum[MR][NP][2];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      float* at = c + i * c_stride + p * kPanel;
      sum[i][p][0] = accumulate ? _mm256_loadu_ps(at) : _mm256_setzero_ps();
      sum[i][p][1] = accumulate ? _mm256_loadu_ps(at + 8) : _mm256_setzero_ps();
    }
  }
  for (; depth >= 8; depth -= 8, a += MR * 8, w += 8 * kPanel) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
  }
  for (int k = 0; k < depth; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      float* at = c + i * c_stride + p * kPanel;
      _mm256_storeu_ps(at, sum[i][p][0]);
      _mm256_storeu_ps(at + 8, sum[i][p][1]);
    }
  }
}

// As many panels at once as give enough independent chains for the multiply-adds' latency.
template <int MR, typename W>
void TileProduct(const float* a, const W* w, int64_t panel_stride, int num_panels, int64_t depth, float* c,
                 int64_t c_stride, bool accumulate) {
  constexpr int kNp = MR == 1 ? 4 : MR <= 3 ? 2 : 1;
  int p = 0;
  for (; p + kNp <= num_panels; p += kNp) {
    MicroProduct<MR, kNp, W>(a, w + p * panel_stride, panel_stride, depth, c + p * kPanel, c_stride,
                             accumulate);
  }
  for (; p < num_panels; ++p) {
    MicroProduct<MR, 1, W>(a, w + p * panel_stride, panel_stride, depth, c + p * kPanel, c_stride,
                           accumulate);
  }
}

inline constexpr int kMaxTileRows = 6;

template <typename W>
void AnyTileProduct(int rows, const float* a, const W* w, int64_t panel_stride, int num_panels, int64_t depth,
                    float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      TileProduct<1, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
    case 2:
      TileProduct<2, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
    case 3:
      TileProduct<3, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
    case 4:
      TileProduct<4, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
    case 5:
      TileProduct<5, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
    default:
      TileProduct<6, W>(a, w, panel_stride, num_panels, depth, c, c_stride, accumulate);
      break;
  }
}

}  // namespace
}  // namespace phalanx
