// Products of packed rows and panels with AVX-512: the panels, the packed rows and the chains of
// avx2_gemm.cc, so the same bits, twice as many outputs an instruction.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kMaxTileRows = 12;  // times two panels: 24 sums, and their operands, are in registers
constexpr int64_t kSlice = 256;   // k of two panels that stay in the first-level cache with a tile of rows

inline __m512 LoadPanel(const float* w) { return _mm512_loadu_ps(w); }
// Outputs 0..7 are the low halves of the words, 8..15 the high ones.
inline __m512 LoadPanel(const uint16_t* w) {
  const __m512i words = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
  const __m512i left = _mm512_setr_epi32(16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_sllv_epi32(words, left), _mm512_set1_epi32(-0x10000)));
}

template <int MR, int NP, typename W>
[[gnu::always_inline]] inline void Step(const float* a, const W* w, int64_t panel_stride,
                                        __m512 (&sum)[MR][NP]) {
  __m512 panel[NP];
#pragma GCC unroll 4
  for (int p = 0; p < NP; ++p) panel[p] = LoadPanel(w + p * panel_stride);
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    const __m512 x = _mm512_set1_ps(a[i * 8]);
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) sum[i][p] = _mm512_fmadd_ps(x, panel[p], sum[i][p]);
  }
}

template <int MR, int NP, typename W>
void MicroProduct(const float* a, const W* w, int64_t panel_stride, int64_t depth, float* c, int64_t c_stride,
                  bool accumulate) {
  __m512 sum[MR][NP];
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
      sum[i][p] = accumulate ? _mm512_loadu_ps(c + i * c_stride + p * kPanel) : _mm512_setzero_ps();
  }
  for (; depth >= 8; depth -= 8, a += MR * 8, w += 8 * kPanel) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
  }
  for (int k = 0; k < depth; ++k) Step<MR, NP, W>(a + k, w + k * kPanel, panel_stride, sum);
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) _mm512_storeu_ps(c + i * c_stride + p * kPanel, sum[i][p]);
  }
}

struct Tile {
  const float* a;
  int64_t panel_stride;
  int num_panels;
  int64_t depth;
  float* c;
  int64_t c_stride;
  bool accumulate;
};

// As many panels at once as give enough independent chains for the multiply-adds' latency.
template <int MR, typename W>
void TileProduct(const Tile& t, const W* w) {
  constexpr int kNp = MR <= 2 ? 4 : 2;
  int p = 0;
  for (; p + kNp <= t.num_panels; p += kNp) {
    MicroProduct<MR, kNp, W>(t.a, w + p * t.panel_stride, t.panel_stride, t.depth, t.c + p * kPanel,
                             t.c_stride, t.accumulate);
  }
  for (; p < t.num_panels; ++p) {
    MicroProduct<MR, 1, W>(t.a, w + p * t.panel_stride, t.panel_stride, t.depth, t.c + p * kPanel, t.c_stride,
                           t.accumulate);
  }
}

template <typename W, int MR = kMaxTileRows>
void AnyTileProduct(int rows, const Tile& t, const W* w) {
  if (rows == MR) return TileProduct<MR, W>(t, w);
  if constexpr (MR > 1) AnyTileProduct<W, MR - 1>(rows, t, w);
}

template <typename W>
void Product(const PanelProductParams& p) {
  const auto* const a = static_cast<const float*>(p.a);
  const auto* const w = static_cast<const W*>(p.w);
  const int tiles = NumTiles(p.rows, kMaxTileRows);
  if (tiles == 1) {
    return AnyTileProduct<W>(
        p.rows,
        {a + p.a_begin * p.rows, p.panel_stride, p.num_panels, p.depth, p.c, p.c_stride, p.accumulate}, w);
  }
  for (int64_t k = 0; k == 0 || k < p.depth; k += kSlice) {
    const int64_t depth = p.depth - k < kSlice ? p.depth - k : kSlice;
    for (int panel = 0; panel < p.num_panels; panel += 2) {
      const int panels = p.num_panels - panel < 2 ? 1 : 2;
      const W* const slice = w + panel * p.panel_stride + k * kPanel;
      // Each tile fetches its share of the next panels' slices.
      const int64_t lines = depth * kPanel * static_cast<int64_t>(sizeof(W)) / 64;
      for (int t = 0; t < tiles; ++t) {
        for (int64_t i = lines * t / tiles; i < lines * (t + 1) / tiles; ++i) {
          _mm_prefetch(reinterpret_cast<const char*>(slice + 2 * p.panel_stride) + i * 64, _MM_HINT_T1);
          _mm_prefetch(reinterpret_cast<const char*>(slice + 3 * p.panel_stride) + i * 64, _MM_HINT_T1);
        }
        const int begin = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
        const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - begin;
        AnyTileProduct<W>(rows,
                          {a + begin * p.a_depth + (p.a_begin + k) * rows, p.panel_stride, panels, depth,
                           p.c + begin * p.c_stride + panel * kPanel, p.c_stride, p.accumulate || k > 0},
                          slice);
      }
    }
  }
}

}  // namespace

const GemmKernels kAvx512GemmF32 = {.format = PanelFormat::kF32,
                                    .k_unit = 8,
                                    .pad_weights = false,
                                    .weight_bytes = 4,
                                    .row_bytes = 4,
                                    .max_tile_rows = kMaxTileRows,
                                    .balanced = true,
                                    .block_rows = 96,
                                    .block_panels = 8,
                                    .deep_block_panels = 8,
                                    .shallow_k = kSlice,
                                    .pack = Avx2PackRows,
                                    .pack_weights = Avx2PackWeightsF32,
                                    .product = Product<float>,
                                    .tree_product = nullptr,
                                    .tree_depth = 0,
                                    .begin_task = nullptr,
                                    .end_task = nullptr};
const GemmKernels kAvx512GemmBf16 = {.format = PanelFormat::kBf16,
                                     .k_unit = 8,
                                     .pad_weights = false,
                                     .weight_bytes = 2,
                                     .row_bytes = 4,
                                     .max_tile_rows = kMaxTileRows,
                                     .balanced = true,
                                     .block_rows = 96,
                                     .block_panels = 8,
                                     .deep_block_panels = 8,
                                     .shallow_k = kSlice,
                                     .pack = Avx2PackRows,
                                     .pack_weights = Avx2PackWeightsBf16,
                                     .product = Product<uint16_t>,
                                     .tree_product = nullptr,
                                     .tree_depth = 0,
                                     .begin_task = nullptr,
                                     .end_task = nullptr};

}  // namespace phalanx
