// Products of packed rows and panels with AVX2 and FMA.
#include <string.h>

#include "kernels/cpu/avx2_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

void PackRows(const float* x, int64_t stride, int rows, int, int64_t depth, void* tile, int64_t begin) {
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
      for (int t = 0; t < tiles; ++t) {
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

const GemmKernels kAvx2GemmF32 = {
    PanelFormat::kF32, 8, false, 4, 4, kMaxTileRows, true, 96, 8, PackRows, Product<float>, nullptr, nullptr};
const GemmKernels kAvx2GemmBf16 = {PanelFormat::kBf16, 8,       false,  2, 4,
                                   kMaxTileRows,       true,    96,     8, PackRows,
                                   Product<uint16_t>,  nullptr, nullptr};

}  // namespace phalanx
