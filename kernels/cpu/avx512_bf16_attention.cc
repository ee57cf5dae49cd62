// Attention over bf16 pairs by AVX512_BF16's pair products, and the writing of such a cache.
#include "kernels/cpu/pair_attention.h"

namespace phalanx {
namespace {

struct PairUnit {
  template <typename Weights>
  static void Multiply(const Sums& s, const uint16_t* rows, int64_t next, int tiles, const Weights& weights) {
    for (int t = 0; t < (s.two_rows ? 2 : 1); ++t) {
      for (int row = 0; row < s.tile_rows; row += kMaxRows) {
        AnyRows<kMaxRows>(s, s.tile_rows - row, rows + t * next + row * kTileK, t * kTileRows + row, tiles,
                          weights);
      }
    }
  }

 private:
  static constexpr int kMaxRows = 8;  // times two panels: sums enough for the products' latency

  template <int kRows, typename Weights>
  static void AnyRows(const Sums& s, int count, const uint16_t* rows, int first, int tiles,
                      const Weights& weights) {
    if (count >= kRows) {
      s.two_panels ? Rows<kRows, 2>(s, rows, first, tiles, weights)
                   : Rows<kRows, 1>(s, rows, first, tiles, weights);
    } else if constexpr (kRows > 1) {
      AnyRows<kRows - 1>(s, count, rows, first, tiles, weights);
    }
  }

  template <int kRows, int kPanels, typename Weights>
  static void Rows(const Sums& s, const uint16_t* rows, int first, int tiles, const Weights& weights) {
    __m512 sum[kRows][kPanels];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) sum[i][p] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < tiles; ++k) {
      const PanelPair w = weights(k);
      const uint16_t* a = rows + k * s.tile_rows * kTileK;
      for (int pair = 0; pair < kTileK / 2; ++pair) {
        __m512bh panel[kPanels];
        panel[0] = Load(w.first + pair * 2 * kPanel);
        if (kPanels > 1) panel[kPanels - 1] = Load(w.second + pair * 2 * kPanel);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          int32_t both;
          memcpy(&both, a + i * kTileK + 2 * pair, sizeof(both));
          const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) sum[i][p] = _mm512_dpbf16_ps(sum[i][p], x, panel[p]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p)
        _mm512_storeu_ps(s.c + (first + i) * s.stride + p * kPanel, sum[i][p]);
    }
  }

  static __m512bh Load(const uint16_t* w) { return reinterpret_cast<__m512bh>(_mm512_loadu_ps(w)); }
};

}  // namespace

void PairStoreKey(const float* key, int64_t n, uint16_t* place) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i steps = _mm512_slli_epi32(lanes, 4);  // words of 16 keys
  for (int64_t d = 0; d < n; d += 32) {
    const int left = n - d < 32 ? static_cast<int>(n - d) : 32;
    const __m512 low = _mm512_maskz_loadu_ps(FirstLanes(left), key + d);
    const __m512 high =
        left > 16 ? _mm512_maskz_loadu_ps(FirstLanes(left - 16), key + d + 16) : _mm512_setzero_ps();
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    __m512i pairs;
    memcpy(&pairs, &both, sizeof(pairs));
    _mm512_mask_i32scatter_epi32(place + d / 2 * 2 * kPanel, FirstLanes((left + 1) / 2), steps, pairs, 4);
  }
}

void PairStoreValue(const float* value, int64_t n, bool odd, int64_t panel_stride, uint16_t* place) {
  for (int64_t d = 0; d < n; d += kPanel, place += panel_stride) {
    const __mmask16 lanes = FirstLanes(n - d);
    const __m256bh bf = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, value + d));
    __m256i rounded;
    memcpy(&rounded, &bf, sizeof(rounded));
    const __m512i words = _mm512_cvtepu16_epi32(rounded);
    // The other half of a word is the neighbouring position's, which another thread may be writing.
    const __m512i kept = _mm512_maskz_set1_epi32(lanes, odd ? -0x10000 : 0xffff);
    _mm512_mask_storeu_epi16(place, _mm512_movepi16_mask(kept), odd ? _mm512_slli_epi32(words, 16) : words);
  }
}

void Avx512Bf16AttentionChunk(const PairAttentionChunkParams& c) { AttentionChunk<PairUnit>(c); }

}  // namespace phalanx
