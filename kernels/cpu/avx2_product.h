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

// `ahead`: how far behind in the panels what is fetched lies, in bytes; 0: nothing is.
template <int MR, int NP, typename W>
[[gnu::always_inline]] inline void AddProducts(const float* a, const W* w, int64_t panel_stride,
                                               int64_t ahead, int64_t depth, __m256 (&sum)[MR][NP][2]) {
  for (; depth >= 8; depth -= 8, a += MR * 8, w += 8 * kPanel) {
    if (ahead != 0) {
      for (int p = 0; p < NP; ++p) {
        const char* const next = reinterpret_cast<const char*>(w + p * panel_stride) + ahead;
        for (int line = 0; line < 8 * kPanel * static_cast<int>(sizeof(W)); line += 64)
          _mm_prefetch(next + line, _MM_HINT_T0);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
  }
  for (int k = 0; k < depth; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
}

// Calls body(i, p, half) for all sums, unrolled: they stay in registers.
template <int MR, int NP, typename Body>
[[gnu::always_inline]] inline void ForSums(Body body) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      body(i, p, 0);
      body(i, p, 1);
    }
  }
}

template <int MR, int NP, typename W>
void MicroProduct(const float* a, const W* w, int64_t panel_stride, int64_t ahead, int64_t depth, float* c,
                  int64_t c_stride, bool accumulate) {
  __m256 sum[MR][NP][2];
  ForSums<MR, NP>([&](int i, int p, int half) {
    sum[i][p][half] =
        accumulate ? _mm256_loadu_ps(c + i * c_stride + p * kPanel + half * 8) : _mm256_setzero_ps();
  });
  AddProducts<MR, NP, W>(a, w, panel_stride, ahead, depth, sum);
  ForSums<MR, NP>([&](int i, int p, int half) {
    _mm256_storeu_ps(c + i * c_stride + p * kPanel + half * 8, sum[i][p][half]);
  });
}

inline constexpr int kMaxTileRows = 6;

template <typename W, int MR = kMaxTileRows>
void TileProduct(int rows, const float* a, const W* w, int64_t panel_stride, int num_panels, int64_t depth,
                 float* c, int64_t c_stride, bool accumulate, int64_t ahead = 0) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return TileProduct<W, MR - 1>(rows, a, w, panel_stride, num_panels, depth, c, c_stride, accumulate,
                                    ahead);
    }
  }
  // As many panels at once as give enough independent chains for the multiply-adds' latency.
  constexpr int kNp = MR == 1 ? 4 : (MR <= 3 ? 2 : 1);
  int p = 0;
  for (; p + kNp <= num_panels; p += kNp) {
    MicroProduct<MR, kNp, W>(a, w + p * panel_stride, panel_stride, ahead, depth, c + p * kPanel, c_stride,
                             accumulate);
  }
  for (; p < num_panels; ++p) {
    MicroProduct<MR, 1, W>(a, w + p * panel_stride, panel_stride, ahead, depth, c + p * kPanel, c_stride,
                           accumulate);
  }
}

}  // namespace
}  // namespace phalanx
