// Products of packed rows and panels with AVX-512: the panels, the packed rows and the chains of
// avx2_gemm.cc, so the same bits, twice as many outputs an instruction.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/avx512_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

struct F32Words {
  using Row = float;
  using Panel = float;
  static constexpr int kDepth = 1, kRun = 8;
  static __m512 LoadRow(const float* x) { return _mm512_set1_ps(*x); }
  static __m512 LoadPanel(const float* w) { return _mm512_loadu_ps(w); }
  static __m512 MultiplyAdd(__m512 row, __m512 panel, __m512 sum) { return _mm512_fmadd_ps(row, panel, sum); }
};

struct Bf16Words : F32Words {
  using Panel = uint16_t;
  // Outputs 0..7 are the low halves of the words, 8..15 the high ones.
  static __m512 LoadPanel(const uint16_t* w) {
    const __m512i words = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    const __m512i left = _mm512_setr_epi32(16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_sllv_epi32(words, left), _mm512_set1_epi32(-0x10000)));
  }
};

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
                                    .shallow_k = 0,
                                    .pack = Avx2PackRows,
                                    .pack_weights = Avx2PackWeightsF32,
                                    .product = Product<F32Words>,
                                    .block_tree = BlockTree<F32Words>,
                                    .many_rows_tree = nullptr,
                                    .tree_depth = 2048,
                                    .begin_task = nullptr,
                                    .end_task = nullptr,
                                    .attention_chunk = nullptr};
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
                                     .shallow_k = 0,
                                     .pack = Avx2PackRows,
                                     .pack_weights = Avx2PackWeightsBf16,
                                     .product = Product<Bf16Words>,
                                     .block_tree = BlockTree<Bf16Words>,
                                     .many_rows_tree = nullptr,
                                     .tree_depth = 4096,
                                     .begin_task = nullptr,
                                     .end_task = nullptr,
                                     .attention_chunk = nullptr};

}  // namespace phalanx
