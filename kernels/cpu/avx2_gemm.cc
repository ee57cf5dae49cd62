// Products of packed rows and panels with AVX2 and FMA.
#include <string.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/avx2_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

// The bits of bf16 in the upper half of each lane, rounded to nearest even; what is below is to be dropped.
inline __m256i RoundUpperHalf(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

inline void StorePanelRow(__m256 low, __m256 high, float* panel) {
  _mm256_storeu_ps(panel, low);
  _mm256_storeu_ps(panel + 8, high);
}
inline void StorePanelRow(__m256 low, __m256 high, uint16_t* panel) {
  const __m256i upper =
      _mm256_and_si256(RoundUpperHalf(high), _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  const __m256i both = _mm256_or_si256(_mm256_srli_epi32(RoundUpperHalf(low), 16), upper);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel), both);
}

template <typename W>
void PackWeights(const float* rows, int64_t stride, int64_t depth, void* panel) {
  auto* out = static_cast<W*>(panel);
  for (int64_t k = 0; k < depth; k += 8) {
    __m256 low[8], high[8];
    for (int j = 0; j < 8; ++j) {
      low[j] = LoadFirst(rows + j * stride + k, depth - k);
      high[j] = LoadFirst(rows + (j + 8) * stride + k, depth - k);
    }
    Transpose8(low);
    Transpose8(high);
    for (int i = 0; i < 8 && k + i < depth; ++i) StorePanelRow(low[i], high[i], out + (k + i) * kPanel);
  }
}

// A slice of a panel that stays in the first-level cache while all rows pass over it.
template <typename W>
constexpr int64_t kSlice = sizeof(W) == 2 ? 512 : 256;

template <typename W>
void Product(const PanelProductParams& p) {
  const auto* a = static_cast<const float*>(p.a);
  const auto* w = static_cast<const W*>(p.w);
  const int tiles = NumTiles(p.rows, kMaxTileRows);
  const int64_t next = p.panel_stride * static_cast<int64_t>(sizeof(W));  // the first tile fetches it
  for (int64_t k = 0; k == 0 || k < p.depth; k += kSlice<W>) {
    const int64_t depth = p.depth - k < kSlice<W> ? p.depth - k : kSlice<W>;
    for (int panel = 0; panel < p.num_panels; ++panel) {
      for (int t = 0; t < tiles; ++t) {
        const int begin = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
        const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - begin;
        TileProduct<W>(rows, a + begin * p.a_depth + (p.a_begin + k) * rows,
                       w + panel * p.panel_stride + k * kPanel, p.panel_stride, 1, depth,
                       p.c + begin * p.c_stride + panel * kPanel, p.c_stride, k > 0, t == 0 ? next : 0);
      }
    }
  }
}

// Whole outputs of a tile of MR rows from `row` and NP panels. All segments follow one another, as they do in
// memory; their sums are added in registers.
template <int MR, int NP, typename W>
void PanelsTree(const TreeProductParams& p, int row, int panel, int64_t ahead) {
  const float* const a = static_cast<const float*>(p.a) + row * p.a_depth;
  const W* const w = static_cast<const W*>(p.w) + panel * p.panel_stride;
  const ProductSegment* segment = p.segments;
  __m256 pending[kMaxTreeLevels][MR][NP][2];
  for (int tree = 0; tree < p.num_trees; ++tree) {
    const int count = p.tree_segments[tree];
    __m256 sum[MR][NP][2];
    ForSums<MR, NP>([&](int i, int j, int half) { sum[i][j][half] = _mm256_setzero_ps(); });
    int top = 0;
    for (int s = 0; s < count; ++s, ++segment) {
      if (s > 0) {
        ForSums<MR, NP>([&](int i, int j, int half) {
          pending[top][i][j][half] = sum[i][j][half];
          sum[i][j][half] = _mm256_setzero_ps();
        });
        ++top;
      }
      AddProducts<MR, NP, W>(a + segment->a_begin * MR, w + segment->w_begin * kPanel, p.panel_stride, ahead,
                             segment->depth, sum);
      for (int merged = s; (merged & 1) != 0; merged >>= 1) {
        --top;
        ForSums<MR, NP>([&](int i, int j, int half) {
          sum[i][j][half] = _mm256_add_ps(pending[top][i][j][half], sum[i][j][half]);
        });
      }
    }
    ForSums<MR, NP>([&](int i, int j, int half) {
      const int64_t first = (int64_t{panel} + j) * kPanel + half * 8;
      const __m256i lanes = LaneMask(p.n - first);
      __m256 y = sum[i][j][half];
      if (p.bias != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(p.bias + first, lanes));
      _mm256_maskstore_ps(p.out + tree * p.tree_stride + (row + i) * p.out_stride + first, lanes, y);
    });
  }
}

template <typename W, int NP, int MR>
void TileTree(const TreeProductParams& p, int row, int rows, int panel, int64_t ahead) {
  if constexpr (MR > 1) {
    if (rows < MR) return TileTree<W, NP, MR - 1>(p, row, rows, panel, ahead);
  }
  PanelsTree<MR, NP, W>(p, row, panel, ahead);
}

constexpr int64_t kAhead = 4096;  // bytes

template <typename W>
void BlockTree(const TreeProductParams& p) {
  const int end = p.first_panel + p.num_panels;
  int panel = p.first_panel;
  // A few rows alone have too few independent chains for the multiply-adds' latency.
  if (p.rows == 1) {
    for (; panel + 4 <= end; panel += 4) PanelsTree<1, 4, W>(p, 0, panel, kAhead);
  }
  if (p.rows <= 3) {
    for (; panel + 2 <= end; panel += 2) TileTree<W, 2, 3>(p, 0, p.rows, panel, kAhead);
  }
  const int tiles = NumTiles(p.rows, kMaxTileRows);
  for (; panel < end; ++panel) {
    // The first tile of several fetches the next panel.
    const int64_t next = tiles == 1 ? kAhead : p.panel_stride * static_cast<int64_t>(sizeof(W));
    for (int t = 0; t < tiles; ++t) {
      const int row = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
      const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - row;
      TileTree<W, 1, kMaxTileRows>(p, row, rows, panel, t == 0 ? next : 0);
    }
  }
}

}  // namespace

void Avx2PackRows(const float* x, int64_t stride, int rows, int, int64_t depth, void* tile, int64_t begin) {
  float* out = static_cast<float*>(tile) + begin * rows;
  for (int64_t k = 0; k < depth; k += 8) {
    for (int i = 0; i < rows; ++i, out += 8) {
      const float* from = x + i * stride + k;
      if (k + 8 <= depth) {
        _mm256_storeu_ps(out, _mm256_loadu_ps(from));
      } else {
        for (int j = 0; j < 8; ++j) out[j] = k + j < depth ? from[j] : 0.0f;
      }
    }
  }
}

void Avx2PackWeightsF32(const float* rows, int64_t stride, int64_t depth, void* panel) {
  PackWeights<float>(rows, stride, depth, panel);
}

void Avx2PackWeightsBf16(const float* rows, int64_t stride, int64_t depth, void* panel) {
  PackWeights<uint16_t>(rows, stride, depth, panel);
}

const GemmKernels kAvx2GemmF32 = {.format = PanelFormat::kF32,
                                  .k_unit = 8,
                                  .pad_weights = false,
                                  .weight_bytes = 4,
                                  .row_bytes = 4,
                                  .max_tile_rows = kMaxTileRows,
                                  .balanced = true,
                                  .block_rows = 96,
                                  .block_panels = 8,
                                  .deep_block_panels = 8,
                                  .shallow_k = 0,
                                  .pack = Avx2PackRows,
                                  .pack_weights = Avx2PackWeightsF32,
                                  .product = Product<float>,
                                  .block_tree = BlockTree<float>,
                                  .many_rows_tree = nullptr,
                                  .tree_depth = 2048,
                                  .begin_task = nullptr,
                                  .end_task = nullptr,
                                  .attention_chunk = nullptr};
const GemmKernels kAvx2GemmBf16 = {.format = PanelFormat::kBf16,
                                   .k_unit = 8,
                                   .pad_weights = false,
                                   .weight_bytes = 2,
                                   .row_bytes = 4,
                                   .max_tile_rows = kMaxTileRows,
                                   .balanced = true,
                                   .block_rows = 96,
                                   .block_panels = 8,
                                   .deep_block_panels = 8,
                                   .shallow_k = 0,
                                   .pack = Avx2PackRows,
                                   .pack_weights = Avx2PackWeightsBf16,
                                   .product = Product<uint16_t>,
                                   .block_tree = BlockTree<uint16_t>,
                                   .many_rows_tree = nullptr,
                                   .tree_depth = 4096,
                                   .begin_task = nullptr,
                                   .end_task = nullptr,
                                   .attention_chunk = nullptr};

}  // namespace phalanx
