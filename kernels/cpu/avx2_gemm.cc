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
  if (tiles == 1) {
    AnyTileProduct<W>(p.rows, a + p.a_begin * p.rows, w, p.panel_stride, p.num_panels, p.depth, p.c,
                      p.c_stride, p.accumulate);
    return;
  }
  for (int64_t k = 0; k == 0 || k < p.depth; k += kSlice<W>) {
    const int64_t depth = p.depth - k < kSlice<W> ? p.depth - k : kSlice<W>;
    for (int panel = 0; panel < p.num_panels; ++panel) {
      // Each tile fetches its share of the next panel's slice.
      const char* next = reinterpret_cast<const char*>(w + (panel + 1) * p.panel_stride + k * kPanel);
      const int64_t lines = depth * kPanel * static_cast<int64_t>(sizeof(W)) / 64;
      for (int t = 0; t < tiles; ++t) {
        for (int64_t i = lines * t / tiles; i < lines * (t + 1) / tiles; ++i)
          _mm_prefetch(next + i * 64, _MM_HINT_T1);
        const int begin = TileBegin(p.rows, tiles, kMaxTileRows, true, t);
        const int rows = TileBegin(p.rows, tiles, kMaxTileRows, true, t + 1) - begin;
        AnyTileProduct<W>(rows, a + begin * p.a_depth + (p.a_begin + k) * rows,
                          w + panel * p.panel_stride + k * kPanel, p.panel_stride, 1, depth,
                          p.c + begin * p.c_stride + panel * kPanel, p.c_stride, p.accumulate || k > 0);
      }
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
                                  .shallow_k = kSlice<float>,
                                  .pack = Avx2PackRows,
                                  .pack_weights = Avx2PackWeightsF32,
                                  .product = Product<float>,
                                  .tree_product = nullptr,
                                  .tree_depth = 0,
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
                                   .shallow_k = kSlice<uint16_t>,
                                   .pack = Avx2PackRows,
                                   .pack_weights = Avx2PackWeightsBf16,
                                   .product = Product<uint16_t>,
                                   .tree_product = nullptr,
                                   .tree_depth = 0,
                                   .begin_task = nullptr,
                                   .end_task = nullptr,
                                   .attention_chunk = nullptr};

}  // namespace phalanx
