// The micro-kernel of the AVX-512 products, its loop over rows and panels, and whole outputs of trees of
// shards. For files compiled for AVX-512; everything has internal linkage.
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

#include "kernels/cpu/avx512_math.h"
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
[[gnu::always_inline]] inline void AddProducts(const Row<Words>* a, const Panel<Words>* w,
                                               int64_t panel_stride, int64_t ahead, int64_t depth,
                                               __m512 (&sum)[MR][NP]) {
  constexpr int kRun = Words::kRun;
  for (; depth >= kRun; depth -= kRun, a += MR * kRun, w += kRun * kPanel) {
#pragma GCC unroll 16
    for (int k = 0; k < kRun; ++k)
      Step<MR, NP, kFetch, Words>(a + k, w + k * kPanel, panel_stride, ahead, sum);
  }
  for (int k = 0; k < depth; ++k)
    Step<MR, NP, kFetch, Words>(a + k, w + k * kPanel, panel_stride, ahead, sum);
}

// Calls body(i, p) for all sums, unrolled: they stay in registers.
template <int MR, int NP, typename Body>
[[gnu::always_inline]] inline void ForSums(Body body) {
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) body(i, p);
  }
}

template <int MR, int NP, bool kFetch, typename Words>
void MicroProduct(const Row<Words>* a, const Panel<Words>* w, int64_t panel_stride, int64_t ahead,
                  int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  __m512 sum[MR][NP];
  ForSums<MR, NP>([&](int i, int p) {
    sum[i][p] = accumulate ? _mm512_loadu_ps(c + i * c_stride + p * kPanel) : _mm512_setzero_ps();
  });
  AddProducts<MR, NP, kFetch, Words>(a, w, panel_stride, ahead, depth, sum);
  ForSums<MR, NP>([&](int i, int p) { _mm512_storeu_ps(c + i * c_stride + p * kPanel, sum[i][p]); });
}

template <typename Words>
struct Tile {
  const Row<Words>* a;
  int64_t panel_stride;
  int64_t ahead;
  int num_panels;  // 1 or 2
  int64_t depth;
  float* c;
  int64_t c_stride;
  bool accumulate;
};

template <typename Words, bool kFetch, int MR = kMaxTileRows>
void TileProduct(int rows, const Tile<Words>& t, const Panel<Words>* w) {
  if constexpr (MR > 1) {
    if (rows < MR) return TileProduct<Words, kFetch, MR - 1>(rows, t, w);
  }
  const auto product =
      t.num_panels == 2 ? MicroProduct<MR, 2, kFetch, Words> : MicroProduct<MR, 1, kFetch, Words>;
  product(t.a, w, t.panel_stride, t.ahead, t.depth, t.c, t.c_stride, t.accumulate);
}

template <typename Words>
void Product(const PanelProductParams& p) {
  const auto* const a = static_cast<const Row<Words>*>(p.a);
  const auto* const w = static_cast<const Panel<Words>*>(p.w);
  const int64_t stride = p.panel_stride / Words::kDepth, begin = p.a_begin / Words::kDepth;
  const int64_t depth = p.depth / Words::kDepth, row_depth = p.a_depth / Words::kDepth;
  const int tiles = NumTiles(p.rows, kMaxTileRows);
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
        const Tile<Words> tile = {a + row * row_depth + (begin + k) * rows, stride,     next, panels, words,
                                  p.c + row * p.c_stride + panel * kPanel,  p.c_stride, k > 0};
        t == 0 ? TileProduct<Words, true>(rows, tile, slice) : TileProduct<Words, false>(rows, tile, slice);
      }
    }
  }
}

// Whole outputs of a tile of MR rows from `row` and NP panels. All segments follow one another, as they do in
// memory; their sums are added in registers.
template <int MR, int NP, bool kFetch, typename Words>
void PanelsTree(const TreeProductParams& p, int row, int panel, int64_t ahead) {
  const int64_t stride = p.panel_stride / Words::kDepth;
  const auto* const a = static_cast<const Row<Words>*>(p.a) + row * (p.a_depth / Words::kDepth);
  const auto* const w = static_cast<const Panel<Words>*>(p.w) + panel * stride;
  const ProductSegment* segment = p.segments;
  __m512 pending[kMaxTreeLevels][MR][NP];
  for (int tree = 0; tree < p.num_trees; ++tree) {
    const int count = p.tree_segments[tree];
    __m512 sum[MR][NP];
    ForSums<MR, NP>([&](int i, int j) { sum[i][j] = _mm512_setzero_ps(); });
    int top = 0;
    for (int s = 0; s < count; ++s, ++segment) {
      if (s > 0) {
        ForSums<MR, NP>([&](int i, int j) {
          pending[top][i][j] = sum[i][j];
          sum[i][j] = _mm512_setzero_ps();
        });
        ++top;
      }
      AddProducts<MR, NP, kFetch, Words>(a + segment->a_begin / Words::kDepth * MR,
                                         w + segment->w_begin / Words::kDepth * kPanel, stride, ahead,
                                         segment->depth / Words::kDepth, sum);
      for (int merged = s; (merged & 1) != 0; merged >>= 1) {
        --top;
        ForSums<MR, NP>([&](int i, int j) { sum[i][j] = _mm512_add_ps(pending[top][i][j], sum[i][j]); });
      }
    }
    const int64_t first = int64_t{panel} * kPanel;
    float* const out = p.out + tree * p.tree_stride + row * p.out_stride + first;
    ForSums<MR, NP>([&](int i, int j) {
      const __mmask16 lanes = FirstLanes(p.n - first - j * kPanel);
      __m512 y = sum[i][j];
      if (p.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, p.bias + first + j * kPanel));
      _mm512_mask_storeu_ps(out + i * p.out_stride + j * kPanel, lanes, y);
    });
  }
}

template <typename Words, int NP, bool kFetch, int MR = NP == 4 ? 2 : kMaxTileRows>
void TileTree(const TreeProductParams& p, int row, int rows, int panel, int64_t ahead) {
  if constexpr (MR > 1) {
    if (rows < MR) return TileTree<Words, NP, kFetch, MR - 1>(p, row, rows, panel, ahead);
  }
  PanelsTree<MR, NP, kFetch, Words>(p, row, panel, ahead);
}

template <typename Words, int NP>
void RowsTree(const TreeProductParams& p, int panel) {
  const int tiles = NumTiles(p.rows, kMaxTileRows);
  if (tiles == 1) return TileTree<Words, NP, true>(p, 0, p.rows, panel, kAhead);
  if constexpr (NP <= 2) {
    // The first tile fetches the next two panels; the others find these in the second-level cache.
    const int64_t next = 2 * p.panel_stride / Words::kDepth * static_cast<int64_t>(sizeof(Panel<Words>));
    for (int t = 0; t < tiles; ++t) {
      const int row = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
      const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - row;
      t == 0 ? TileTree<Words, NP, true>(p, row, rows, panel, next)
             : TileTree<Words, NP, false>(p, row, rows, panel, 0);
    }
  }
}

template <typename Words>
void BlockTree(const TreeProductParams& p) {
  const int end = p.first_panel + p.num_panels;
  int panel = p.first_panel;
  // One or two rows alone have too few independent chains for the multiply-adds' latency.
  if (p.rows <= 2) {
    for (; panel + 4 <= end; panel += 4) RowsTree<Words, 4>(p, panel);
  }
  for (; panel + 2 <= end; panel += 2) RowsTree<Words, 2>(p, panel);
  if (panel < end) RowsTree<Words, 1>(p, panel);
}

}  // namespace
}  // namespace phalanx
