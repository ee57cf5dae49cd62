// Products of packed rows and panels with AMX: bf16 times bf16, fp32 sums in tiles.
//
// A row tile holds, for each 32 k, its rows' 32 values (64 bytes a row). A sum is a chain over k in steps of
// 32, whatever the number of rows: tiles of less than 16 rows do less of the same.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileK = 32;
constexpr int64_t kWeightTile = kTileK * kPanel;  // elements

// Tiles 0..3 sums, 4 and 5 rows of x, 6 and 7 weights.
void BeginTask(int rows) { ConfigureTiles(8, 6, rows < kTileRows ? rows : kTileRows); }

void EndTask() { _tile_release(); }

struct Tiles {
  const uint16_t* a;  // first row tile
  int64_t a_next;     // elements to the second
  const uint16_t* w;  // first panel
  int64_t w_next;     // elements to the second
  float* c;
  int64_t c_stride;  // bytes
  int64_t tiles;     // of k
  int64_t a_row_bytes;
  int64_t a_tile;  // elements of a tile of rows
};

template <int kRowTiles, int kPanels>
inline void LoadSums(const Tiles& t, bool accumulate) {
  char* c = reinterpret_cast<char*>(t.c);
  if (!accumulate) {
    _tile_zero(0);
    if (kPanels > 1) _tile_zero(1);
    if (kRowTiles > 1) _tile_zero(2);
    if (kRowTiles > 1 && kPanels > 1) _tile_zero(3);
    return;
  }
  _tile_loadd(0, c, t.c_stride);
  if (kPanels > 1) _tile_loadd(1, c + 64, t.c_stride);
  if (kRowTiles > 1) _tile_loadd(2, c + kTileRows * t.c_stride, t.c_stride);
  if (kRowTiles > 1 && kPanels > 1) _tile_loadd(3, c + kTileRows * t.c_stride + 64, t.c_stride);
}

template <int kRowTiles, int kPanels>
inline void StoreSums(const Tiles& t) {
  char* c = reinterpret_cast<char*>(t.c);
  _tile_stored(0, c, t.c_stride);
  if (kPanels > 1) _tile_stored(1, c + 64, t.c_stride);
  if (kRowTiles > 1) _tile_stored(2, c + kTileRows * t.c_stride, t.c_stride);
  if (kRowTiles > 1 && kPanels > 1) _tile_stored(3, c + kTileRows * t.c_stride + 64, t.c_stride);
}

// Up to two row tiles times up to two panels.
template <int kRowTiles, int kPanels, bool kPrefetch>
void Product(const Tiles& t, bool accumulate) {
  constexpr int64_t kAhead = 8192;  // bytes
  LoadSums<kRowTiles, kPanels>(t, accumulate);
  const uint16_t* a = t.a;
  const uint16_t* w = t.w;
  for (int64_t k = 0; k < t.tiles; ++k, a += t.a_tile, w += kWeightTile) {
    _tile_loadd(4, a, t.a_row_bytes);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kPanels > 1) {
      _tile_loadd(7, w + t.w_next, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kRowTiles > 1) {
      _tile_loadd(5, a + t.a_next, t.a_row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (kPanels > 1) _tile_dpbf16ps(3, 5, 7);
    }
    if (kPrefetch) {
      const char* ahead = reinterpret_cast<const char*>(w) + kAhead;
      for (int line = 0; line < 16; ++line) {
        _mm_prefetch(ahead + line * 64, _MM_HINT_T1);
        if (kPanels > 1) _mm_prefetch(ahead + t.w_next * 2 + line * 64, _MM_HINT_T1);
      }
    }
  }
  StoreSums<kRowTiles, kPanels>(t);
}

template <bool kPrefetch>
void AnyProduct(const Tiles& t, int row_tiles, int panels, bool accumulate) {
  if (row_tiles == 2) {
    panels == 2 ? Product<2, 2, kPrefetch>(t, accumulate) : Product<2, 1, kPrefetch>(t, accumulate);
  } else {
    panels == 2 ? Product<1, 2, kPrefetch>(t, accumulate) : Product<1, 1, kPrefetch>(t, accumulate);
  }
}

// Where there are many rows, k of a pair of panels and a pair of row tiles that stay in the caches while all
// rows pass over them. Up to kShallow one slice is better: sums need not be stored and loaded between slices.
constexpr int64_t kSlice = 512;
constexpr int64_t kShallow = 1024;

void PanelProduct(const PanelProductParams& p) {
  const int row_tiles = NumTiles(p.rows, kTileRows);
  const int tile_rows = row_tiles == 1 ? p.rows : kTileRows;
  const int64_t slice = row_tiles > 2 && p.depth > kShallow ? kSlice : p.depth;
  Tiles t;
  t.a_next = kTileRows * p.a_depth;
  t.w_next = p.panel_stride;
  t.c_stride = p.c_stride * 4;
  t.a_row_bytes = 64;
  t.a_tile = tile_rows * kTileK;
  int64_t k = 0;
  do {  // once for no k at all: sums of 0
    const int64_t depth = p.depth - k < slice ? p.depth - k : slice;
    t.tiles = depth / kTileK;
    for (int panel = 0; panel < p.num_panels; panel += 2) {
      const int panels = p.num_panels - panel < 2 ? 1 : 2;
      for (int r = 0; r < row_tiles; r += 2) {
        const int tiles = row_tiles - r < 2 ? 1 : 2;
        t.a = static_cast<const uint16_t*>(p.a) + r * kTileRows * p.a_depth + (p.a_begin + k) * tile_rows;
        t.w = static_cast<const uint16_t*>(p.w) + panel * p.panel_stride + k * kPanel;
        t.c = p.c + r * kTileRows * p.c_stride + panel * kPanel;
        if (row_tiles <= 2) {
          AnyProduct<true>(t, tiles, panels, k > 0);
        } else {
          AnyProduct<false>(t, tiles, panels, k > 0);
        }
      }
    }
    k += slice;
  } while (k < p.depth);
}

// ---- Whole outputs of many rows -----------------------------------------------------------------
//
// A pair of row tiles times a pair of panels makes a square of 32 x 32 outputs; sums of segments are added
// while they are in the first-level cache. All row pairs pass over a pair of panels, which meanwhile is in
// the second-level cache, as all rows are; each row pair fetches its share of the next pair of panels.

constexpr int kSquare = 2 * kTileRows;
using Square = float[kSquare][2 * kPanel];

// The two panels of weights at a step.
struct PanelPair {
  const uint16_t* first;
  const uint16_t* second;  // null: there is one
};

PanelPair PairAt(const TreeProductParams& p, int panel) {
  const auto* w = static_cast<const uint16_t*>(p.w);
  PanelPair pair = {w + panel * p.panel_stride, nullptr};
  if (p.gate_panels > 0) {
    pair.second = w + (p.gate_panels + panel) * p.panel_stride;
  } else if (panel + 1 < p.all_panels) {
    pair.second = pair.first + p.panel_stride;
  }
  return pair;
}

// What is fetched while a square is computed: some lines of each tile of the next panels.
struct Ahead {
  PanelPair next;            // null: nothing
  int first_line, end_line;  // of a tile's 16
};

template <bool kTwoRows, bool kTwoPanels>
inline void SquareSum(const uint16_t* a0, const uint16_t* a1, const uint16_t* w0, const uint16_t* w1,
                      const uint16_t* n0, const uint16_t* n1, int64_t tiles, const Ahead& ahead) {
  _tile_zero(0);
  if (kTwoPanels) _tile_zero(1);
  if (kTwoRows) _tile_zero(2);
  if (kTwoRows && kTwoPanels) _tile_zero(3);
  for (int64_t k = 0; k < tiles; ++k) {
    const int64_t at = k * kWeightTile;
    _tile_loadd(4, a0 + at, 64);
    _tile_loadd(6, w0 + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoPanels) {
      _tile_loadd(7, w1 + at, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kTwoRows) {
      _tile_loadd(5, a1 + at, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kTwoPanels) _tile_dpbf16ps(3, 5, 7);
    }
    if (n0 != nullptr) {
      for (int line = ahead.first_line; line < ahead.end_line; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(n0 + at) + line * 64, _MM_HINT_T1);
    }
    if (n1 != nullptr) {
      for (int line = ahead.first_line; line < ahead.end_line; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(n1 + at) + line * 64, _MM_HINT_T1);
    }
  }
}

template <bool kTwoRows, bool kTwoPanels>
inline void StoreSquare(float* to, int64_t stride) {
  char* c = reinterpret_cast<char*>(to);
  _tile_stored(0, c, stride);
  if (kTwoPanels) _tile_stored(1, c + 64, stride);
  if (kTwoRows) _tile_stored(2, c + kTileRows * stride, stride);
  if (kTwoRows && kTwoPanels) _tile_stored(3, c + kTileRows * stride + 64, stride);
}

// silu(gate) * up of a row of a square, by the operations of Avx2SwiGlu, bit for bit.
inline __m512 Gated(const float (&row)[2 * kPanel]) {
  const __m512 g = _mm512_load_ps(row);
  const __m512 e = Exp16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
  const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
  return _mm512_mul_ps(silu, _mm512_load_ps(row + kPanel));
}

// Of whole tiles of rows.
void PackGated(const TreeProductParams& p, const Square& square, int rows, int first_row, int panel) {
  const int64_t at = static_cast<int64_t>(panel) * kPanel;
  auto* out = static_cast<uint16_t*>(p.packed_out) + first_row * p.packed_depth + at / kTileK * kWeightTile +
              at % kTileK;
  for (int i = 0; i < rows; ++i) {
    const __m256bh rounded = _mm512_cvtneps_pbh(Gated(square[i]));
    memcpy(out + i / kTileRows * kTileRows * p.packed_depth + i % kTileRows * kTileK, &rounded,
           sizeof(rounded));
  }
}

template <bool kTwoRows, bool kTwoPanels>
inline void AddSquare(const Square& right, Square& left) {
  for (int r = 0; r < (kTwoRows ? kSquare : kTileRows); ++r) {
    _mm512_store_ps(left[r], _mm512_add_ps(_mm512_load_ps(left[r]), _mm512_load_ps(right[r])));
    if (!kTwoPanels) continue;
    _mm512_store_ps(left[r] + 16, _mm512_add_ps(_mm512_load_ps(left[r] + 16), _mm512_load_ps(right[r] + 16)));
  }
}

// Writes a square, plus another or a bias, to where it belongs.
template <bool kTwoPanels, typename Plus>
inline void WriteSquare(const Square& square, int rows, int64_t cols, float* out, int64_t stride, Plus plus) {
  const __mmask16 low = FirstLanes(cols), high = FirstLanes(cols - 16);
  for (int r = 0; r < rows; ++r) {
    _mm512_mask_storeu_ps(out + r * stride, low, plus(_mm512_load_ps(square[r]), r, 0));
    if (kTwoPanels)
      _mm512_mask_storeu_ps(out + r * stride + 16, high, plus(_mm512_load_ps(square[r] + 16), r, 16));
  }
}

// One square for all segments of all trees.
template <bool kTwoRows, bool kTwoPanels>
void SquareProduct(const TreeProductParams& p, int first_row, int panel, const Ahead& ahead) {
  alignas(64) Square stack[kMaxTreeLevels + 2];
  const auto* rows = static_cast<const uint16_t*>(p.a) + first_row * p.a_depth;
  const PanelPair w = PairAt(p, panel);
  const int num_rows = p.rows - first_row < kSquare ? p.rows - first_row : kSquare;
  const int64_t first_col = static_cast<int64_t>(panel) * kPanel;
  const int64_t cols = p.n - first_col < 2 * kPanel ? p.n - first_col : 2 * kPanel;
  const bool whole = num_rows == (kTwoRows ? kSquare : kTileRows) && cols == (kTwoPanels ? 32 : 16);
  const ProductSegment* segment = p.segments;
  const auto sum = [&] {
    const uint16_t* a = rows + segment->a_begin * kTileRows;
    const int64_t at = segment->w_begin * kPanel;
    SquareSum<kTwoRows, kTwoPanels>(
        a, a + kTileRows * p.a_depth, w.first + at, kTwoPanels ? w.second + at : nullptr,
        ahead.next.first == nullptr ? nullptr : ahead.next.first + at,
        ahead.next.second == nullptr ? nullptr : ahead.next.second + at, segment->depth / kTileK, ahead);
    ++segment;
  };
  for (int tree = 0; tree < p.num_trees; ++tree) {
    float* out = p.out + tree * p.tree_stride + first_row * p.out_stride + first_col;
    const int count = p.tree_segments[tree];
    if (count == 1) {
      sum();
      if (whole && p.bias == nullptr && p.gate_panels == 0) {
        StoreSquare<kTwoRows, kTwoPanels>(out, p.out_stride * 4);
        continue;
      }
      StoreSquare<kTwoRows, kTwoPanels>(stack[0][0], sizeof(stack[0][0]));
      if (p.gate_panels > 0) {
        if (p.packed_out != nullptr) {
          PackGated(p, stack[0], kTwoRows ? kSquare : kTileRows, first_row, panel);
          continue;
        }
        for (int r = 0; r < num_rows; ++r) _mm512_storeu_ps(out + r * p.out_stride, Gated(stack[0][r]));
      } else if (p.bias == nullptr) {
        WriteSquare<kTwoPanels>(stack[0], num_rows, cols, out, p.out_stride,
                                [](__m512 x, int, int) { return x; });
      } else {
        const float* bias = p.bias + first_col;
        const __m512 low = _mm512_maskz_loadu_ps(FirstLanes(cols), bias);
        const __m512 high = _mm512_maskz_loadu_ps(FirstLanes(cols - 16), bias + 16);
        WriteSquare<kTwoPanels>(stack[0], num_rows, cols, out, p.out_stride, [&](__m512 x, int, int half) {
          return _mm512_add_ps(x, half == 0 ? low : high);
        });
      }
      continue;
    }
    // A binary counter of pending sums. What a segment completes is added behind the next one's tile
    // products: the two take different units. The count is a power of two: the last addition gives the tree.
    int top = 0;
    for (int i = 0; i < count; ++i) {
      sum();
      for (int merged = i - 1; i > 0 && (merged & 1) != 0; merged >>= 1, --top)
        AddSquare<kTwoRows, kTwoPanels>(stack[top - 1], stack[top - 2]);
      StoreSquare<kTwoRows, kTwoPanels>(stack[top++][0], sizeof(stack[0][0]));
    }
    for (; top > 2; --top) AddSquare<kTwoRows, kTwoPanels>(stack[top - 1], stack[top - 2]);
    WriteSquare<kTwoPanels>(stack[0], num_rows, cols, out, p.out_stride, [&](__m512 x, int r, int half) {
      return _mm512_add_ps(x, _mm512_load_ps(stack[1][r] + half));
    });
  }
}

void TreeProduct(const TreeProductParams& p) {
  const int row_pairs = (p.rows + kSquare - 1) / kSquare;
  const int step = p.gate_panels > 0 ? 1 : 2;
  const int end = p.first_panel + p.num_panels;
  for (int panel = p.first_panel; panel < end; panel += step) {
    const bool two_panels = PairAt(p, panel).second != nullptr;
    for (int r = 0; r < row_pairs; ++r) {
      Ahead ahead = {};
      if (panel + step < p.all_panels) {
        ahead.next = PairAt(p, panel + step);
        ahead.first_line = 16 * r / row_pairs;
        ahead.end_line = 16 * (r + 1) / row_pairs;
      }
      const int row = r * kSquare;
      if (p.rows - row > kTileRows) {
        two_panels ? SquareProduct<true, true>(p, row, panel, ahead)
                   : SquareProduct<true, false>(p, row, panel, ahead);
      } else {
        two_panels ? SquareProduct<false, true>(p, row, panel, ahead)
                   : SquareProduct<false, false>(p, row, panel, ahead);
      }
    }
  }
}

}  // namespace

const GemmKernels kAmxGemmBf16 = {.format = PanelFormat::kBf16Pairs,
                                  .k_unit = kTileK,
                                  .pad_weights = true,
                                  .weight_bytes = 2,
                                  .row_bytes = 2,
                                  .max_tile_rows = kTileRows,
                                  .balanced = false,
                                  .block_rows = 256,
                                  .block_panels = 8,
                                  .deep_block_panels = 16,
                                  .shallow_k = kShallow,
                                  .pack = Avx512PackRowsBf16,
                                  .pack_weights = Avx512PackWeightsBf16Pairs,
                                  .product = PanelProduct,
                                  .block_tree = nullptr,
                                  .many_rows_tree = TreeProduct,
                                  .tree_depth = 3072,
                                  .begin_task = BeginTask,
                                  .end_task = EndTask,
                                  .attention_chunk = AmxAttentionChunk};

}  // namespace phalanx
