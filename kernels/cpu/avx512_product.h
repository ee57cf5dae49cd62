// The micro-kernel of the AVX-512 products and its loop over rows and panels. For files compiled for AVX-512;
// everything has internal linkage.
//
// It works on words: of one k, or of a pair of them (bf16 times bf16). A panel holds for each word of k the
// 16 outputs; a tile of MR packed rows holds, for each run of kRun words, those of row 0, of row 1, ... Every
// output is one chain of multiply-adds in rising words. A file's struct Words says what they are:
//   Row, Panel    types of a packed row's and of a panel's word
//   kDepth, kRun  k of a word; words of a run
//   __m512 LoadRow(const Row*), in all lanes; __m512 LoadPanel(const Panel*), 16 outputs
//   __m512 MultiplyAdd(__m512 row, __m512 panel, __m512 sum)
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kMaxTileRows = 12;  // times two panels: 24 sums, and their operands, are in registers
constexpr int64_t kAhead = 4096;  // bytes
constexpr int64_t kSlice = 256;  // words of two panels that stay in the first-level cache with a tile of rows

template <typename Words>
using Row = typename Words::Row;
template <typename Words>
using Panel = typename Words::Panel;

// kFetch: what lies `ahead` bytes behind in the panels is fetched.
template <int MR, int NP, bool kFetch, typename Words>
[[gnu::always_inline]] inline void Step(const Row<Words>* a, const Panel<Words>* w, int64_t panel_stride,
                                        int64_t ahead, __m512 (&sum)[MR][NP]) {
  __m512 panel[NP];
#pragma GCC unroll 4
  for (int p = 0; p < NP; ++p) {
    panel[p] = Words::LoadPanel(w + p * panel_stride);
    if (kFetch) _mm_prefetch(reinterpret_cast<const char*>(w + p * panel_stride) + ahead, _MM_HINT_T0);
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    const __m512 x = Words::LoadRow(a + i * Words::kRun);
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) sum[i][p] = Words::MultiplyAdd(x, panel[p], sum[i][p]);
  }
}

template <int MR, int NP, bool kFetch, typename Words>
void MicroProduct(const Row<Words>* a, const Panel<Words>* w, int64_t panel_stride, int64_t ahead,
                  int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  __m512 sum[MR][NP];
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
      sum[i][p] = accumulate ? _mm512_loadu_ps(c + i * c_stride + p * kPanel) : _mm512_setzero_ps();
  }
  constexpr int kRun = Words::kRun;
  for (; depth >= kRun; depth -= kRun, a += MR * kRun, w += kRun * kPanel) {
#pragma GCC unroll 16
    for (int k = 0; k < kRun; ++k)
      Step<MR, NP, kFetch, Words>(a + k, w + k * kPanel, panel_stride, ahead, sum);
  }
  for (int k = 0; k < depth; ++k)
    Step<MR, NP, kFetch, Words>(a + k, w + k * kPanel, panel_stride, ahead, sum);
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) _mm512_storeu_ps(c + i * c_stride + p * kPanel, sum[i][p]);
  }
}

template <typename Words>
struct Tile {
  const Row<Words>* a;
  int64_t panel_stride;
  int64_t ahead;
  int num_panels;
  int64_t depth;
  float* c;
  int64_t c_stride;
  bool accumulate;
};

// As many panels at once as give enough independent chains for the multiply-adds' latency.
template <int MR, bool kFetch, typename Words>
void TileProduct(const Tile<Words>& t, const Panel<Words>* w) {
  constexpr int kNp = MR <= 2 ? 4 : 2;
  int p = 0;
  for (; p + kNp <= t.num_panels; p += kNp) {
    MicroProduct<MR, kNp, kFetch, Words>(t.a, w + p * t.panel_stride, t.panel_stride, t.ahead, t.depth,
                                         t.c + p * kPanel, t.c_stride, t.accumulate);
  }
  for (; p < t.num_panels; ++p) {
    MicroProduct<MR, 1, kFetch, Words>(t.a, w + p * t.panel_stride, t.panel_stride, t.ahead, t.depth,
                                       t.c + p * kPanel, t.c_stride, t.accumulate);
  }
}

template <typename Words, bool kFetch, int MR = kMaxTileRows>
void AnyTileProduct(int rows, const Tile<Words>& t, const Panel<Words>* w) {
  if (rows == MR) return TileProduct<MR, kFetch, Words>(t, w);
  if constexpr (MR > 1) AnyTileProduct<Words, kFetch, MR - 1>(rows, t, w);
}

template <typename Words>
void Product(const PanelProductParams& p) {
  const auto* const a = static_cast<const Row<Words>*>(p.a);
  const auto* const w = static_cast<const Panel<Words>*>(p.w);
  const int64_t stride = p.panel_stride / Words::kDepth, begin = p.a_begin / Words::kDepth;
  const int64_t depth = p.depth / Words::kDepth, row_depth = p.a_depth / Words::kDepth;
  const int tiles = NumTiles(p.rows, kMaxTileRows);
  if (tiles == 1) {
    return AnyTileProduct<Words, true>(
        p.rows, {a + begin * p.rows, stride, kAhead, p.num_panels, depth, p.c, p.c_stride, p.accumulate}, w);
  }
  // The first tile fetches the next two panels.
  const int64_t next = 2 * stride * static_cast<int64_t>(sizeof(*w));
  for (int64_t k = 0; k == 0 || k < depth; k += kSlice) {
    const int64_t words = depth - k < kSlice ? depth - k : kSlice;
    for (int panel = 0; panel < p.num_panels; panel += 2) {
      const int panels = p.num_panels - panel < 2 ? 1 : 2;
      const Panel<Words>* const slice = w + panel * stride + k * kPanel;
      for (int t = 0; t < tiles; ++t) {
        const int row = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
        const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - row;
        const Tile<Words> tile = {a + row * row_depth + (begin + k) * rows,
                                  stride,
                                  next,
                                  panels,
                                  words,
                                  p.c + row * p.c_stride + panel * kPanel,
                                  p.c_stride,
                                  p.accumulate || k > 0};
        t == 0 ? AnyTileProduct<Words, true>(rows, tile, slice)
               : AnyTileProduct<Words, false>(rows, tile, slice);
      }
    }
  }
}

}  // namespace
}  // namespace phalanx
