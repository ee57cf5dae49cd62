// Products of packed rows and panels with AMX: bf16 times bf16, fp32 sums in tiles.
//
// A row tile holds, for each 32 k, its rows' 32 values (64 bytes a row). A sum is a chain over k in steps of
// 32, whatever the number of rows: tiles of less than 16 rows do less of the same.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileK = 32;
constexpr int64_t kWeightTile = kTileK * kPanel;  // elements

// source: Intel SDM, LDTILECFG
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0..3 sums, 4 and 5 rows of x, 6 and 7 weights.
void BeginTask(int rows) {
  TileConfig config;
  memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(i < 6 && rows < kTileRows ? rows : kTileRows);
  }
  // GCC 12's _tile_loadconfig names 8 bytes as its operand: without this, stores to the others are dropped.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void EndTask() { _tile_release(); }

void PackRows(const float* x, int64_t stride, int rows, int tile_rows, int64_t depth, void* tile,
              int64_t begin) {
  uint16_t* out = static_cast<uint16_t*>(tile) + begin * tile_rows;
  for (int64_t k = 0; k < depth; k += kTileK, out += tile_rows * kTileK) {
    const int64_t left = depth - k;
    const __mmask16 low = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __mmask16 high = left >= 32   ? 0xffff
                           : left <= 16 ? 0
                                        : static_cast<__mmask16>((1u << (left - 16)) - 1);
    for (int i = 0; i < tile_rows; ++i) {
      __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
      if (i < rows) {
        a = _mm512_maskz_loadu_ps(low, x + i * stride + k);
        b = _mm512_maskz_loadu_ps(high, x + i * stride + k + 16);
      }
      const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
      memcpy(out + i * kTileK, &both, sizeof(both));
    }
  }
}

// Pairs of k become words, words of 16 outputs are transposed.
// source: Intel SDM, TDPBF16PS: of the second operand, row r holds the pairs k = 2r, 2r + 1.
void PackWeights(const float* rows, int64_t stride, int64_t depth, void* panel) {
  auto* out = static_cast<uint16_t*>(panel);
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t left = depth - k;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    for (int half = 0; half < 2; ++half) {
      __m256 words[8];
      for (int j = 0; j < 8; ++j) {
        const __m512 x = _mm512_maskz_loadu_ps(mask, rows + (half * 8 + j) * stride + k);
        const __m256bh rounded = _mm512_cvtneps_pbh(x);
        memcpy(&words[j], &rounded, sizeof(rounded));
      }
      Transpose8(words);
      for (int pair = 0; pair < 8 && 2 * pair < left; ++pair) {
        memcpy(out + (k / 2 + pair) * 2 * kPanel + half * kPanel, &words[pair], sizeof(__m256));
      }
    }
  }
}

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
          AnyProduct<true>(t, tiles, panels, p.accumulate || k > 0);
        } else {
          AnyProduct<false>(t, tiles, panels, p.accumulate || k > 0);
        }
      }
    }
    k += slice;
  } while (k < p.depth);
}

}  // namespace

const GemmKernels kAmxGemmBf16 = {.format = PanelFormat::kAmxBf16,
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
                                  .pack = PackRows,
                                  .pack_weights = PackWeights,
                                  .product = PanelProduct,
                                  .begin_task = BeginTask,
                                  .end_task = EndTask};

}  // namespace phalanx
